"""Sphinx's settings, for docs/build_site.py (`make site`), which gathers the pages."""

import os
import re

from myst_nb.core.render import NbElementRenderer

project = "Compressing language models"
author = "The authors of Compressing Language Models"
html_title = project
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
suppress_warnings = ["mystnb.unknown_mime_type"]

# ---------------------------------------------------------------- pages and notebooks

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # without it, text after $$…$$ in the same paragraph is garbled
myst_heading_anchors = 3
nb_execution_mode = "off"  # the saved outputs are what was checked
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
# An explorer is shown as the HTML that it saved, which moves without a kernel.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}
bibtex_bibfiles = ["references.bib"]  # beside this file
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# ---------------------------------------------------------------- the library

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True


def docstring_to_rst(app, what, name, obj, options, lines):
    """The library's docstrings are plain text: an indented block is code, and | is itself."""
    text, section, code = [], False, False
    for line in lines:
        header = re.match(r"(Args|Returns|Raises|Yields):$", line)
        section = bool(header) or (section and (not line or line.startswith(" ")))
        indented = line.startswith("    ") and not section
        if indented and not code and not (text and text[-1]):
            text += ["::", ""]
            code = True
        elif line and not indented:
            code = False
        text.append(line if code else escape(line))
    lines[:] = text


def escape(line: str) -> str:
    """reStructuredText that reads as `line`, with `name` as code."""
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return line
    parts[::2] = [re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def with_alt_text(render_image):
    """myst-nb takes an image's size from the saved output, but not its alt text."""

    def render(self, data):
        rendered = render_image(self, data)
        rendered[0]["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
        return rendered

    return render


def say_that_it_is_for_reading(app, pagename, templatename, context, doctree):
    """An exercise speaks of writing into it; that is for the notebook, not for its page."""
    if pagename.startswith("exercises/"):
        context["body"] = (
            '<div class="admonition note"><p class="admonition-title">A page for reading</p><p>To '
            "work on this exercise, open its notebook: download it with the button above, or find "
            f"it in your copy of the course at <code>{pagename}.ipynb</code>.</p></div>"
            f"{context['body']}"
        )


def setup(app):
    NbElementRenderer.render_image = with_alt_text(NbElementRenderer.render_image)
    app.connect("autodoc-process-docstring", docstring_to_rst, priority=400)  # before napoleon
    app.connect("html-page-context", say_that_it_is_for_reading)


# ---------------------------------------------------------------- looks

# The one setting from which all links to the repository, Binder and Colab are made: its address.
repository = os.environ.get("REPOSITORY", "")
html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has a search field
    "collapse_navbar": True,  # else every page has, hidden, the names of all modules
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if repository:
    html_theme_options |= {
        "repository_url": repository,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
html_context = {"default_mode": "auto"}
add_module_names = False
templates_path = ["_templates"]
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = True
html_show_sphinx = False
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
