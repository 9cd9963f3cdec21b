"""One environment, said in four places: pyproject, constraints, environment.yml, Makefile."""

import re
import tomllib
from importlib.metadata import distribution, distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from compresslab.assets import DATA

ROOT = DATA.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = SpecifierSet(PROJECT["requires-python"])
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def declared() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(d for extra in EXTRAS.values() for d in extra)]
    return [r for r in map(Requirement, texts) if r.name != PROJECT["name"]]


def test_every_declared_package_is_pinned_and_only_in_constraints():
    for requirement in declared():
        assert canonicalize_name(requirement.name) in pins(), requirement.name
        assert not requirement.specifier, f"{requirement} has a version outside constraints.txt"


def test_every_package_that_these_need_is_pinned():
    todo, seen = [(r.name, r.extras) for r in declared()], set()
    while todo:
        name, extras = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in distribution(name).requires or []:
            need = Requirement(text)
            # Markers are judged on this system: what only others need cannot be pinned from here.
            wanted = any(
                need.marker is None or need.marker.evaluate({"extra": extra})
                for extra in ("", *extras)
            )
            if wanted:
                todo.append((need.name, need.extras))
    # torch's CUDA packages exist in its CUDA build only, which nobody is to install.
    unpinned = {canonicalize_name(n) for n in seen} - pins().keys() - {"setuptools"}
    assert not {n for n in unpinned if not n.startswith(("nvidia-", "cuda-", "triton"))}


def test_every_pinned_version_runs_on_all_pythons_that_the_project_asks_for():
    ours = [f"3.{minor}.0" for minor in range(30) if f"3.{minor}.0" in PYTHONS]
    assert ours == ["3.11.0", "3.12.0", "3.13.0", "3.14.0"]
    for found in distributions():
        asks = found.metadata["Requires-Python"]
        if asks and canonicalize_name(found.name) in pins():
            for python in ours:
                assert python in SpecifierSet(asks), f"{found.name} {found.version} asks for {asks}"


def test_make_and_the_readme_ask_for_the_same_pythons():
    assert "not (3, 11) <= sys.version_info < (3, 15)" in MAKEFILE
    assert "Python 3.11 to 3.14" in MAKEFILE
    assert "Python 3.11 to 3.14" in (ROOT / "README.md").read_text()
    assert SpecifierSet(">=3.11,<3.15") == PYTHONS


def test_installed_versions_are_the_pinned_ones():
    for requirement in declared():
        found = distribution(requirement.name).version.partition("+")[0]
        assert found == pins()[canonicalize_name(requirement.name)], requirement.name


def test_conda_installs_the_same_package_with_the_same_constraints_and_extras():
    (pip,) = (d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
    assert pip == ["-c constraints.txt", f"-e .[{','.join(EXTRAS)}]"]


def test_conda_has_the_pinned_torch_and_the_python_that_the_project_asks_for():
    conda = dict(d.split("=", 1) for d in CONDA["dependencies"] if isinstance(d, str) and "=" in d)
    assert conda["pytorch-cpu"] == pins()["torch"]
    assert PROJECT["requires-python"].startswith(f">={conda['python']},")


def test_make_knows_the_project_s_extras():
    (targets,) = re.findall(r"^((?:\$\(VENV\)/\w+ ?)+): \$\(VENV\)/%: ", MAKEFILE, re.MULTILINE)
    assert set(re.findall(r"/(\w+)", targets)) == set(EXTRAS)


@pytest.mark.parametrize("name", ["lab", "test", "doctor", "assets"])
def test_the_readme_names_only_commands_that_make_has(name):
    readme = (ROOT / "README.md").read_text()
    assert f"make {name}" in readme
    for target in re.findall(r"`make (\w+)", readme):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_no_registry_host_is_written_into_the_project():
    host = re.compile(r"(pypi\.org|pythonhosted|conda\.anaconda|registry\.npmjs|download\.pytorch)")
    for name in ("Makefile", "constraints.txt", "environment.yml", "pyproject.toml", "postBuild"):
        assert not host.search((ROOT / name).read_text()), name
