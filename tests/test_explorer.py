"""What holds for every explorer. That a browser moves one is tested in tests/browser."""

import json
import re
from html import unescape

import ipywidgets
import pytest
from bs4 import BeautifulSoup

from compresslab.explorer import MOST_STATES, Explorer

SIZES = [("<small>", 1), ("large", 10)]


def slider(name: str, options: list, **settings):
    return ipywidgets.SelectionSlider(options=options, description=name, **settings)


def make(calls: list | None = None) -> Explorer:
    """Two sizes and three colours."""

    def answer(size: int, colour: str) -> str:
        if calls is not None:
            calls.append((size, colour))
        return f"<p>{size} {colour}</p>"

    colours = ipywidgets.ToggleButtons(options=["red", "green", "blue"], description="colour")
    return Explorer("Which?", {"size": slider("size", SIZES), "colour": colours}, answer)


def page(explorer: Explorer) -> BeautifulSoup:
    return BeautifulSoup(explorer.page(), "html.parser")


def answers(explorer: Explorer) -> list[str]:
    """The answer for every position, as the page has them."""
    data = json.loads(page(explorer).select_one("script[type='application/json']").string)
    return [BeautifulSoup(answer, "html.parser").get_text() for answer in data]


def shown(explorer: Explorer) -> str:
    return page(explorer).select_one(".answer").get_text()


def test_a_move_shows_the_new_answer():
    explorer = make()
    assert "<p>1 red</p>" in explorer.shown.value
    explorer.controls["colour"].value = "blue"
    assert "<p>1 blue</p>" in explorer.shown.value


def test_the_page_has_every_answer_in_the_order_of_the_positions_and_shows_the_present_one():
    explorer = make()
    explorer.controls["size"].value = 10
    explorer.controls["colour"].value = "green"
    assert answers(explorer) == [
        f"{size} {colour}" for size in (1, 10) for colour in ("red", "green", "blue")
    ]
    assert shown(explorer) == "10 green"


def test_every_control_of_the_page_has_a_name_and_its_options():
    explorer = make()
    explorer.controls["size"].value = 10
    range_input, *radios = page(explorer).select("input")
    assert range_input.find_parent("label").get_text(" ", strip=True) == "size large"
    assert (range_input["min"], range_input["max"], range_input["value"]) == ("0", "1", "1")
    assert range_input["aria-valuetext"] == "large"
    assert json.loads(range_input["data-options"]) == ["<small>", "large"]
    fieldset = page(explorer).select_one("fieldset")
    assert fieldset.legend.get_text() == "colour"
    assert [radio["value"] for radio in radios] == ["red", "green", "blue"]
    assert [radio.has_attr("checked") for radio in radios] == [True, False, False]
    assert len({radio["name"] for radio in radios}) == 1


def test_radio_buttons_of_two_explorers_do_not_disturb_each_other():
    names = [page(make()).select_one("input[type=radio]")["name"] for _ in range(2)]
    assert names[0] != names[1]


def test_controls_with_too_many_positions_stay_where_they_are_and_say_so():
    many = slider("many", list(range(MOST_STATES)), value=3)
    explorer = Explorer(
        "Which?",
        {"size": slider("size", SIZES), "many": many},
        lambda size, many: f"{size} {many}",
    )
    assert answers(explorer) == ["1 3", "10 3"]
    assert [control.has_attr("disabled") for control in page(explorer).select("input")] == [
        False, True,
    ]  # fmt: skip
    assert "greyed out" in page(explorer).get_text()
    assert "greyed out" not in page(make()).get_text()


def test_an_answer_is_worked_out_once():
    calls = []
    explorer = make(calls)
    explorer.page()
    for colour in ("blue", "green", "red"):
        explorer.controls["colour"].value = colour
    assert len(calls) == len(set(calls)) == 6


def test_a_notebook_saves_the_widget_and_the_page():
    bundle = make()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"].count("<p>10 ") == 3


def test_without_scripts_and_forms_the_saved_answer_is_left_and_no_other():
    left = page(make())
    for element in left.select("script, style"):
        element.decompose()
    assert "1 red" in left.get_text()
    assert "10 red" not in left.get_text()


def test_an_answer_cannot_end_the_script_that_it_lies_in():
    explorer = Explorer("Which?", {"size": slider("size", SIZES)}, lambda size: "</script>x")
    assert answers(explorer) == ["x", "x"]


@pytest.mark.parametrize("text", ["<b>", 'say "x"', "a & b"])
def test_names_are_shown_as_they_are(text):
    explorer = Explorer(text, {"size": slider(text, SIZES)}, lambda size: str(size))
    assert page(explorer).b.get_text() == text
    assert page(explorer).select_one(".name").get_text() == text
    assert unescape(re.search("<b>(.*?)</b>", explorer.children[0].value)[1]) == text
