"""The start of the final project: it runs, and leaves a file that can be handed in."""

import statistics

import nbformat
import torch

from compresslab import export, models
from compresslab.assets import DATA
from compresslab.grading.intake import find_submissions
from compresslab.grading.leaderboard import BUDGET, LIMITS, MODEL
from compresslab.pruning.depth import keep_layers_

NOTEBOOK = nbformat.read(DATA.parent / "exercises" / "project" / "project.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def test_it_is_handed_out_without_outputs_and_in_short_cells():
    nbformat.validate(NOTEBOOK)
    assert not any(cell.outputs or cell.execution_count for cell in CODE)
    assert statistics.median(len(cell.source.splitlines()) for cell in CODE) <= 8


def test_the_rules_are_those_of_the_leaderboard():
    text = "\n".join(cell.source for cell in NOTEBOOK.cells)
    assert f"at most {BUDGET / 1e6:.1f} MB" in text
    assert LIMITS.cell == 120
    assert f"two minutes and {LIMITS.memory / 1e9:.0f} GB of memory for each" in text


def test_the_start_runs_and_its_file_can_be_handed_in(tmp_path, monkeypatch, capsys):
    load_classifier = models.load_classifier

    def load_one_layer():  # of six, to save time
        model, tokenizer = load_classifier()
        keep_layers_(model, [0])
        return model, tokenizer

    monkeypatch.setattr(models, "load_classifier", load_one_layer)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.chdir(tmp_path)
    space = {}
    for cell in CODE:
        exec(compile(cell.source, "project.ipynb", "exec"), space)
    ((file,),) = find_submissions(tmp_path, MODEL)
    assert (file.student, file.problem) == ("start", "")
    model, tokenizer = export.read(file.content, "it")
    assert len(tokenizer) == len(model.bert.embeddings.word_embeddings.weight) == 16_000
    printed = capsys.readouterr().out
    assert f"{len(file.content) / 1e6:.1f} MB\n" in printed
    assert "against float32: " in printed
    assert "batch 32: " in printed
    assert "  bert.embeddings.word_embeddings\n" in printed
