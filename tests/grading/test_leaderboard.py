"""The leaderboard: what is measured, who is better, and files that would rather not be measured."""

import csv
import json
import re
import zipfile
import zlib
from types import SimpleNamespace

import pytest
import small
import torch
from forgery import description_of, forge
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from compresslab import corpora
from compresslab.archive import CHECK, HEAD
from compresslab.export import export, read
from compresslab.grading import leaderboard as board
from compresslab.grading import sandbox, trial
from compresslab.grading.intake import File, Unreadable
from compresslab.grading.leaderboard import Row, make_board, make_table, read_private, understand
from compresslab.grading.trial import classify, compare_times
from compresslab.inference import fuse_bert_
from compresslab.measure import Estimate, accuracy, compare_accuracy
from compresslab.quantization.int8 import quantize_linears_int8_

WHY_NOT = sandbox.why_not()
in_sandbox = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TEXTS = [f"{word} film {i}" for i in range(60) for word in ("good", "bad")]
LABELS = [1, 0] * 60
# No split of the course has it, since people do not agree on whether it praises.
MILD = (
    "DISNEY has always been hit or miss when bringing beloved kids' books to the screen: "
    "Tuck Everlasting is a little of both"
)
TWICE = {1: Estimate(2.0, 1.9, 2.1), 32: Estimate(2.0, 1.9, 2.1)}


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    words += [f"[unused{i}]" for i in range(32)]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The bytes of a small file that tells good from bad."""
    path = tmp_path_factory.mktemp("honest") / "honest.clab"
    for seed in range(100):
        model = small.classifier(seed=seed, attention="sdpa").float()
        if classify(model, tokenizer(), TEXTS) == LABELS:
            export(model, tokenizer(), path)
            return path.read_bytes()
    raise AssertionError("no seed gives such a model")


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "private.csv"
    lines = [f"{text},{corpora.LABELS[i]}" for text, i in zip(TEXTS, LABELS, strict=True)]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return path


def normalized(data, *steps):
    """The same file, with replacements (pattern, content) before its normalizer."""
    description = description_of(data)
    definition = description["tokenizer"]["definition"]
    replace = [{"type": "Replace", "pattern": {"Regex": p}, "content": c} for p, c in steps]
    every = [*replace, definition["normalizer"]]
    definition["normalizer"] = {"type": "Sequence", "normalizers": every}
    return forge(data, description)


def bomb(data, numbers=90_000_000):
    """A part of few bytes that becomes 360 MB, several times on the way."""
    description = description_of(data)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    zeros = packer.compress(bytes(numbers)) + packer.flush()
    excuse = numbers // 512 * 8  # bytes: a file may have 64 numbers for each of its own
    description["parts"] = [
        [8, 0, [excuse], [[0, excuse]]],
        ["float32", 0, [numbers], [[1, len(zeros)]] * 4],
    ]
    return forge(data, description, bytes(excuse) + 4 * zeros)


# ---------------------------------------------------------------- a class, in the sandbox


@pytest.fixture(scope="module")
def measured(honest, private, tmp_path_factory):
    """The board of a class in which one is honest; student -> line of the table, and the page."""
    folder = tmp_path_factory.mktemp("class")
    (folder / "in").mkdir()
    endless = normalized(honest, *[*[("(.)", "aaaaaaaa")] * 5, ("a+", "film")] * 100)
    files = {"ada.clab": honest, "bo.clab": bomb(honest), "cy.clab": endless, "di.pdf": b"%PDF"}
    for name, data in files.items():
        (folder / "in" / name).write_bytes(data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            board, "LIMITS", sandbox.Limits(cell=15, submission=400, memory=1_500_000_000)
        )
        patched.setattr(board, "TIMED", 2)
        patched.setattr(board, "ROUNDS", 6)
        page = board.run(folder / "in", folder, private)
    assert page == (folder / "leaderboard.md").read_text(encoding="utf-8")
    return lines_of(folder), page


def lines_of(folder):
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        return {line["student"]: line for line in csv.DictReader(file)}


@in_sandbox
def test_an_honest_file_is_measured(measured, honest):
    lines, page = measured
    assert "120 sentences that nobody was given" in page
    assert lines["ada"]["bytes"] == str(len(honest))
    assert lines["ada"]["accuracy"] == "1.0"
    assert all(lines["ada"][track] == "1" for track in board.TRACKS)
    for size in (1, 32):
        # Against 22.7 million parameters: much faster, and not by as much as the tokenizer takes.
        assert 1.5 < float(lines["ada"][f"batch {size}"]) < 1000


@in_sandbox
@pytest.mark.parametrize(
    ("who", "says"),
    [
        ("bo", "it needs more memory than there is"),
        ("cy", "it was not asked: it runs for more than 15 seconds"),
        ("di", "there is no .clab file among the files"),
    ],
)
def test_a_file_that_cannot_be_measured_gets_a_line(measured, who, says):
    lines, page = measured
    assert lines[who]["problem"] == says
    assert lines[who]["smallest"] == lines[who]["bytes"] == ""
    assert f"- {who}: {says}\n" in page


def test_without_a_sandbox_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda: "there is none")
    with pytest.raises(RuntimeError, match="cannot be read safely here: there is none"):
        board.run(tmp_path, tmp_path / "results")


# ---------------------------------------------------------------- what the sandbox says


def said_of(data):
    """What is said after the start. The sandbox is left out: nothing here needs it to be safe."""
    said, job = [], {"texts": TEXTS[:2], "timed": TEXTS[:2], "rounds": 6}
    trial.try_out(job, data, said.append)
    return said


def test_each_step_is_said(honest, monkeypatch):
    model, its = read(honest, "it")
    model.classifier.weight.data.neg_()
    model.classifier.bias.data.neg_()
    assert classify(model, its, TEXTS[:2]) == [0, 1]
    monkeypatch.setattr(trial, "load_classifier", lambda: (model, its))
    read_, asked, timed = said_of(honest)
    assert (read_, asked) == ("read", [1, 0])
    assert timed.keys() == {1, 32}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda data: b"import os; os.abort()", "the file is no file of compresslab"),
        (lambda data: data[:-1000], "the file was cut off"),
        # The library of regular expressions gives up by itself, by what is no Exception in Python.
        (lambda data: normalized(data, ("(.)", "aaaa"), ("((.|..)+)+(?!.|$)", "")), "retry-limit"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(honest, make, says):
    error = said_of(make(honest))[-1]["error"]
    assert says in error
    assert len(error.splitlines()) == 1


def test_one_who_knows_the_public_split_by_heart_is_perfect_there_and_guesses_elsewhere(honest):
    public = corpora.load_reviews()["test"].select(range(40))
    known = [
        (f"^(?:{'|'.join(re.escape(e['text']) for e in public if e['label'] == label)})$", mark)
        for label, mark in ((0, "¤0¤"), (1, "¤1¤"))
    ]
    answers = [("good|bad", "x"), ("¤0¤", "bad film"), ("¤1¤", "good film")]
    cheat = read(normalized(honest, *known, *answers), "it")
    assert classify(*cheat, list(public["text"])) == list(public["label"])
    assert len(set(classify(*cheat, TEXTS))) == 1


def test_bytes_that_nothing_uses_change_no_answer_and_count(honest, monkeypatch):
    description = description_of(honest)
    description["parts"].append([8, 0, [100_000], [[0, 100_000]]])
    streams = honest[HEAD.size + HEAD.unpack_from(honest)[3] : -CHECK]
    padded = forge(honest, description, streams + bytes(100_000))
    assert classify(*read(padded, "it"), TEXTS) == LABELS
    monkeypatch.setattr(board, "measure", lambda *_: (LABELS, TWICE))
    file = File("ada", "ada", "ada.clab", padded)
    row = board.make_row(file, TEXTS, torch.tensor(LABELS), torch.tensor(LABELS) > 0)
    assert row.size == len(padded) > len(honest) + 99_000


class Spy:
    """A tokenizer that counts the texts of each call."""

    def __init__(self, inner):
        self.inner, self.counts, self.model_max_length = inner, [], inner.model_max_length

    def __call__(self, texts, **options):
        self.counts.append(len(texts))
        return self.inner(texts, **options)


def test_a_fused_model_is_timed_as_a_trace_that_answers_as_it_does(honest, monkeypatch):
    model, its = read(honest, "it")
    quantize_linears_int8_(model)
    fuse_bert_(model)
    timed = []

    def compare_latency(calls, **options):
        timed.append(calls["small"].args[0])
        assert calls["small"]() == classify(model, its, TEXTS)
        return {"small": SimpleNamespace(speedup=TWICE[1])}

    monkeypatch.setattr(trial, "compare_latency", compare_latency)
    compare_times((model, its), (model, its), TEXTS)
    assert len(timed) == 2
    assert not any(isinstance(one, torch.nn.Module) for one in timed)


def test_times_are_from_sentences_to_labels_and_of_the_same_sentences(honest):
    model, its = read(honest, "it")
    dense, small_one = Spy(its), Spy(its)
    compare_times((model, dense), (model, small_one), TEXTS[:40], rounds=6)
    for spy in (dense, small_one):  # one by one, and then 32 and the rest
        assert set(spy.counts) == {1, 32, 8}
        assert spy.counts.count(1) >= 6 * 40
        assert spy.counts.count(32) == spy.counts.count(8) >= 6


def lines(*, asked=(0, 1), timed=None):
    times = {"value": 2.0, "low": 1.9, "high": 2.1}
    said = ["started", "read", asked, {"1": times, "32": times} if timed is None else timed]
    return [json.dumps(record).encode() for record in said]


def test_what_is_complete_is_understood():
    assert understand(lines(), 2, "") == ([0, 1], TWICE)


@pytest.mark.parametrize(
    "said",
    [
        lines(asked=[0]),
        lines(asked=7),
        lines(timed={}),
        lines(timed={s: {"value": 2, "low": 1, "high": float("nan")} for s in ("1", "32")}),
        lines(timed={s: {"value": 2, "low": "1", "high": 3} for s in ("1", "32")}),
        lines(timed={s: {"value": 10**400, "low": 1.0, "high": 3.0} for s in ("1", "32")}),
        [*lines(), b'"more"'],
        [b"nonsense"],
        [b"[" * 100_000],
    ],
)
def test_what_cannot_be_true_is_not_believed(said):
    with pytest.raises(Unreadable, match="nobody asked for"):
        understand(said, 2, "")


def test_a_process_that_ends_early_says_where():
    with pytest.raises(Unreadable, match="it was not asked: its process ended"):
        understand(lines()[:2], 2, "")


# ---------------------------------------------------------------- ranks


def row(name, *, size=1000, wrong=0, speeds=(2.0, 2.0)):
    """Of 1,000 sentences the classifier has all but the last 100 right."""
    at = torch.arange(1000)
    correct, speedups = (at >= wrong) & (at < 900), [Estimate(s, s - 0.1, s + 0.1) for s in speeds]
    difference = compare_accuracy(at < 900, correct)
    speedups = dict(zip((1, 32), speedups, strict=True))
    file = File(name, f"Name of {name}", f"{name}.clab", None)
    return Row(file, name, "", size, correct, difference, speedups)


def places(track, *rows):
    return [(place, row.entry) for place, row in board.TRACKS[track].rank(list(rows))]


def test_within_a_point_is_exact():
    assert places("smallest", row("a", wrong=10), row("b", wrong=11)) == [(1, "a")]


def test_fewer_bytes_win_and_equal_ones_share():
    rows = row("a", size=30), row("b", size=20), row("c", size=20), row("d", size=1, wrong=11)
    assert places("smallest", *rows) == [(1, "b"), (1, "c"), (3, "a")]


def test_speed_counts_where_it_is_lower():
    rows = row("a", speeds=(50.0, 0.5)), row("b", speeds=(3.0, 2.0))
    assert places("fastest", *rows) == [(1, "b"), (2, "a")]


def test_speeds_whose_intervals_meet_share_a_rank_and_the_smaller_file_stands_above():
    rows = [
        row("a", speeds=(2.3, 2.3), size=30),
        row("b", speeds=(2.2, 2.2), size=20),
        row("c", speeds=(2.05, 2.05), size=10),  # meets b's, not a's
    ]
    assert places("fastest", *rows) == [(1, "b"), (1, "a"), (2, "c")]


def test_accuracies_that_are_not_told_apart_share_a_rank():
    rows = row("a", size=30), row("b", wrong=3, size=20), row("c", wrong=40, size=10)
    assert places("most accurate", *rows) == [(1, "b"), (1, "a"), (3, "c")]
    assert places("most accurate", row("a", size=board.BUDGET + 1)) == []


def test_who_is_in_no_track_is_on_the_board_and_no_name_is():
    rows = [row("tiny"), row("bold", wrong=300, size=board.BUDGET + 1)]
    page = make_board(rows, "Heading.", accuracy(rows[0].correct))
    assert page.count("| tiny |") == len(board.TRACKS)
    assert "- bold: 1,800,001 bytes, -30.0 points" in page
    assert "- tiny" not in page
    assert "Name of" not in page
    assert [line["name"] for line in make_table(rows)] == ["Name of tiny", "Name of bold"]


# ---------------------------------------------------------------- what comes in


def test_files_are_found_as_the_platforms_export_them(private, tmp_path, monkeypatch):
    names = {
        "Ada Lovelace_1234_assignsubmission_file_/tiny tiger.clab": b"12345",
        "Ada Lovelace_1234_assignsubmission_file_/report.pdf": b"%PDF",
        "Bo Right_77_assignsubmission_file_mini.clab": b"2",
        "lastcy_LATE_88_4711_first.clab": b"333",
        "lastcy_88_4712_second-1.clab": b"4444",
        "=1+1/a|<b>x.clab": b"odd",
        "ed;=cmd/e.clab": b"broken",
        "di/mine.zip": b"PK damaged",
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)

    def measure(content, texts):
        if content == b"odd":
            raise Unreadable("a | <script> `x`\n# y")
        if content == b"broken":
            raise RuntimeError("what names Ada")
        return LABELS, TWICE

    monkeypatch.setattr(board, "measure", measure)
    monkeypatch.setattr(sandbox, "why_not", lambda: None)
    page = board.run(tmp_path / "all.zip", tmp_path, private)
    found = lines_of(tmp_path)
    assert {who: found[who]["entry"] for who in ("1234", "77", "88", "di")} == {
        "1234": "tiny tiger", "77": "mini", "88": "second", "di": "mine",
    }  # fmt: skip
    assert [found[who]["bytes"] for who in ("1234", "77", "88", "di")] == ["5", "1", "4", ""]
    assert "the zip file is damaged" in found["di"]["problem"]
    # No text does any harm, on the page or in a spreadsheet, and our own failures tell no name.
    (odd,) = [line for line in found.values() if line["name"].startswith("'=")]
    assert "a | <script>" in odd["problem"]
    assert "<" not in page
    assert "\n# y" not in page
    assert "the leaderboard failed, and not the file: RuntimeError" in page
    assert not re.search(r";\s*=", (tmp_path / "leaderboard.csv").read_text(encoding="utf-8"))


def test_what_was_measured_is_there_if_the_run_is_ended(private, tmp_path, monkeypatch):
    for who in ("ada", "bo", "cy"):
        (tmp_path / f"{who}.clab").write_bytes(who.encode())

    def measure(content, texts):
        if content == b"cy":
            raise KeyboardInterrupt
        return LABELS, TWICE

    monkeypatch.setattr(board, "measure", measure)
    monkeypatch.setattr(sandbox, "why_not", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        board.run(tmp_path, tmp_path / "out", private)
    assert set(lines_of(tmp_path / "out")) == {"ada", "bo"}
    page = (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf-8")
    assert "So far 2 of 3 files are measured." in page
    monkeypatch.setattr(board, "measure", lambda *_: (LABELS, TWICE))
    assert "So far" not in board.run(tmp_path, tmp_path / "out", private)


def test_an_empty_folder_is_told(private, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "why_not", lambda: None)
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="there is nothing in"):
        board.run(tmp_path / "in", tmp_path / "out", private)


# ---------------------------------------------------------------- the private split


def test_a_split_of_ones_own(private):
    texts, labels = read_private(private)
    assert texts == TEXTS
    assert labels.tolist() == LABELS


def test_a_spreadsheet_of_another_country_is_read_too(private, tmp_path):
    rows = list(csv.DictReader(private.open(encoding="utf-8")))
    lines = [f'"{row["text"]}, or so";{row["label"].title()};x' for row in rows]
    path = tmp_path / "p.csv"
    path.write_text("\r\n".join(["text;label;note", *lines]), encoding="utf-8-sig")
    texts, labels = read_private(path)
    assert texts[0] == f"{TEXTS[0]}, or so"
    assert labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: ["sentence,label", *lines[1:]], "must have the columns text and label"),
        (lambda lines: lines[:50], "must have at least 100 sentences"),
        (lambda lines: [line.replace("positive", "negative") for line in lines], "both labels"),
        (lambda lines: [*lines, "fine,maybe"], "sentence 121, 'fine': its label is 'maybe'"),
        (lambda lines: [*lines, "GOOD film 0!,positive"], "sentence 121.*or there twice"),
        (lambda lines: [*lines, f"{MILD},positive"], "sentence 121.*in the course's own texts"),
        (lambda lines: [*lines, " ,positive"], "sentence 121, '': it is empty"),
        (lambda lines: [*lines, '"' + "x" * 140_000], "cannot be read: field larger than"),
    ],
)
def test_a_split_that_is_not_one_is_refused(private, tmp_path, change, says):
    path = tmp_path / "p.csv"
    path.write_text("\n".join(change(private.read_text("utf-8").split("\n"))), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_private(path)


def test_on_sentences_that_anyone_could_know_nobody_has_a_rank(tmp_path, monkeypatch):
    for who in ("ada", "bo"):
        (tmp_path / f"{who}.clab").write_bytes(b"large" if who == "ada" else b"tiny")
    test = corpora.load_reviews()["test"].select(range(64))
    monkeypatch.setattr(corpora, "load_reviews", lambda: {"test": test})
    monkeypatch.setattr(board, "measure", lambda *_: (list(test["label"]), TWICE))
    monkeypatch.setattr(sandbox, "why_not", lambda: None)
    page = board.run(tmp_path, tmp_path / "out")
    assert "Anyone could have trained on these sentences" in page
    entries = [line.split(" | ")[:2] for line in page.splitlines() if "100.0%" in line]
    assert entries == [["| ", "bo"], ["| ", "ada"]]
    for line in lines_of(tmp_path / "out").values():
        assert line["accuracy"] == "1.0"
        assert not [line[track] for track in board.TRACKS if line[track]]
