"""Ready-made rooms: dev container, VS Code, Binder."""

import json
import os
import re

import jsonschema
import pytest
import yaml

from compresslab.assets import DATA

ROOT = DATA.parent

# Of the dev container specification, https://containers.dev/implementors/json_reference/, what a
# container made from an image may have; and of VS Code's settings what is used here.
DEV_CONTAINER = {
    "type": "object",
    "required": ["name", "image"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string", "pattern": r"^[\w./-]+:[\w.-]+$"},
        "hostRequirements": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "cpus": {"type": "integer", "minimum": 1},
                "memory": {"type": "string", "pattern": r"^\d+([tgmk]b)?$"},
                "storage": {"type": "string", "pattern": r"^\d+([tgmk]b)?$"},
            },
        },
        "postCreateCommand": {"type": "string"},
        "customizations": {
            "type": "object",
            "properties": {
                "vscode": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "extensions": {"type": "array", "items": {"pattern": r"^[\w-]+\.[\w-]+$"}},
                        "settings": {"type": "object"},
                    },
                }
            },
        },
    },
}


def read(path: str) -> dict:
    """JSON with whole-line comments, as dev containers and VS Code have it."""
    text = (ROOT / path).read_text("utf-8")
    return json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))


def test_the_dev_container_is_as_specified():
    jsonschema.validate(read(".devcontainer/devcontainer.json"), DEV_CONTAINER)


def test_the_dev_container_makes_the_environment_that_it_tells_vs_code_of():
    container = read(".devcontainer/devcontainer.json")
    name = yaml.safe_load((ROOT / "environment.yml").read_text())["name"]
    command = container["postCreateCommand"]
    assert "conda env create -f environment.yml" in command
    assert f"conda run -n {name} python -m compresslab.assets" in command
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"/envs/{name}/" in interpreter
    for file in container["customizations"]["codespaces"]["openFiles"]:
        assert (ROOT / file).exists()


def test_vs_code_is_told_of_the_environment_that_make_makes():
    settings = read(".vscode/settings.json")
    venv = re.search(r"^VENV := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert settings["python.defaultInterpreterPath"] == f"${{workspaceFolder}}/{venv}"
    wanted = read(".vscode/extensions.json")["recommendations"]
    assert "ms-toolsai.jupyter" in wanted
    customizations = read(".devcontainer/devcontainer.json")["customizations"]
    assert customizations["vscode"]["extensions"] == wanted


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_binder_can_run_what_fetches_the_models():
    post_build = ROOT / "postBuild"
    assert os.access(post_build, os.X_OK)
    assert "python -m compresslab.assets" in post_build.read_text()
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) <= {"name", "channels", "dependencies"}
    assert all(isinstance(d, (str, dict)) for d in environment["dependencies"])
