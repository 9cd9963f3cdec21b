"""A few controls and an answer: live in a notebook, and working on a page that has no kernel.

    Explorer("Which weights stay?", {"sparsity": slider}, answer)

calls `answer(sparsity=slider.value)` whenever the slider moves, and shows the HTML it gives back.
Saved with the notebook is the same as plain HTML, with the answers for every position in it. The
course's site and the slides show that one: it moves there too, by mouse, finger or keyboard.
"""

import itertools
import json
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from html import escape
from io import BytesIO

import ipywidgets
import matplotlib.image
import numpy as np

# Saved with a notebook. Controls for which that is not enough stay where they are.
MOST_STATES = 128

STYLE = """<style>
.explorer { line-height: 1.4; text-align: left; }
.explorer .answer { display: flex; flex-wrap: wrap; gap: 0 1.5em; }
.explorer img { width: 384px; max-width: 100%; image-rendering: pixelated; margin: 0; }
.explorer table { margin: 0.2em 0; border-collapse: collapse; line-height: 1.2; }
.explorer th, .explorer td { padding: 0 1em 0 0; text-align: left; border: 0; }
.explorer .number, .explorer td, .explorer fieldset label { white-space: nowrap; }
.explorer .number { text-align: right; }
.explorer .bar { display: inline-block; height: 0.8em; background: #0072B2; }
.explorer .bar.over { background: #D55E00; }
.explorer label, .explorer fieldset { display: block; margin: 0.3em 0; padding: 0; border: 0; }
.explorer legend { font-size: inherit; margin: 0; }
.explorer .name, .explorer legend { display: inline-block; float: left; width: 11em; padding: 0; }
.explorer fieldset label { display: inline; margin-right: 1.5em; }
.explorer input[type=range] { width: 20em; max-width: 55%; vertical-align: middle; }
</style>"""

# The answers are in the order of itertools.product over the controls that move. They are data and
# not hidden elements: where scripts are not trusted, as in a notebook that another machine ran,
# what is left is the answer for the saved positions.
SCRIPT = """<script>
(() => {
  const explorer = document.currentScript.closest(".explorer");
  const answers = JSON.parse(explorer.querySelector("script[type='application/json']").textContent);
  const controls = [...explorer.querySelectorAll("[data-options]")];
  const position = (control) => control.matches("fieldset")
    ? [...control.elements].findIndex((radio) => radio.checked) : Number(control.value);
  const show = () => {
    let state = 0;
    for (const control of controls) {
      const options = JSON.parse(control.dataset.options);
      const at = position(control);
      state = state * options.length + at;
      if (control.type === "range") {
        control.setAttribute("aria-valuetext", options[at]);
        control.nextElementSibling.textContent = options[at];
      }
    }
    explorer.querySelector(".answer").innerHTML = answers[state];
  };
  for (const control of controls) control.addEventListener("input", show);
})();
</script>"""


class Explorer(ipywidgets.VBox):
    """Controls above an answer.

    Args:
        name: what the explorer is for, shown above it.
        controls: argument of `answer` -> a SelectionSlider or ToggleButtons. The first ones move
            without a kernel too, as many as have no more than MOST_STATES positions together.
        answer: the controls' values -> HTML. It has to print the values that it was given.
    """

    def __init__(
        self, name: str, controls: dict[str, ipywidgets.Widget], answer: Callable[..., str]
    ):
        self.name, self.controls, self.answer = name, controls, cache(answer)
        self.shown = ipywidgets.HTML()
        for control in controls.values():
            control.style.description_width = "11em"
            control.layout.width = "34em"
            control.layout.max_width = "100%"
            control.observe(self._update, "value")
        self._update()
        title = ipywidgets.HTML(f"{STYLE}<b>{escape(name)}</b>")
        super().__init__([title, *controls.values(), self.shown])

    def _update(self, _=None) -> None:
        answer = self.answer(**self._now())
        self.shown.value = (
            f'<div class="explorer"><div class="answer" role="status">{answer}</div></div>'
        )

    def _repr_mimebundle_(self, **kwargs) -> dict:
        return super()._repr_mimebundle_(**kwargs) | {"text/html": self.page()}

    def page(self) -> str:
        """The explorer as HTML that needs no kernel."""
        moving, states = [], 1
        for argument, control in self.controls.items():
            states *= len(control.options)
            if states > MOST_STATES:
                break
            moving.append(argument)
        fixed = {a: c.value for a, c in self.controls.items() if a not in moving}
        answers = [
            self.answer(**dict(zip(moving, values, strict=True)), **fixed)
            for values in itertools.product(*(_values(self.controls[a]) for a in moving))
        ]
        data = json.dumps(answers, ensure_ascii=False).replace("</", "<\\/")
        forms = "".join(_form(c, moves=a in moving) for a, c in self.controls.items())
        note = "<p>(What is greyed out moves in the running notebook.)</p>" if fixed else ""
        return (
            f'<div class="explorer">{STYLE}<p><b>{escape(self.name)}</b></p>{forms}{note}'
            f'<div class="answer" role="status">{self.answer(**self._now())}</div>'
            f'<script type="application/json">{data}</script>{SCRIPT}</div>'
        )

    def _now(self) -> dict:
        return {argument: control.value for argument, control in self.controls.items()}


def picture(colours: np.ndarray, *, alt: str) -> str:
    """An <img> with a pixel for each colour of (height, width, 3 or 4), drawn large and sharp."""
    buffer = BytesIO()
    matplotlib.image.imsave(buffer, colours, format="png")
    data = b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def _options(control) -> list[tuple[str, object]]:
    """Label and value of every position."""
    return [o if isinstance(o, tuple) else (str(o), o) for o in control.options]


def _values(control) -> list:
    return [value for _, value in _options(control)]


def _form(control, *, moves: bool) -> str:
    labels = [label for label, _ in _options(control)]
    name, at = escape(control.description), control.index
    off = "" if moves else " disabled"
    options = f' data-options="{escape(json.dumps(labels))}"' if moves else ""
    if isinstance(control, ipywidgets.ToggleButtons):
        radios = "".join(
            f'<label><input type="radio" name="{control.model_id}" value="{escape(label)}"'
            f"{' checked' if i == at else ''}{off}> {escape(label)}</label>"
            for i, label in enumerate(labels)
        )
        return f"<fieldset{options}><legend>{name}</legend>{radios}</fieldset>"
    return (
        f'<label><span class="name">{name}</span> <input type="range" min="0" '
        f'max="{len(labels) - 1}" value="{at}" aria-valuetext="{escape(labels[at])}"'
        f"{options}{off}> "
        f"<output>{escape(labels[at])}</output></label>"
    )
