import pytest

from compresslab import assets, doctor, machine


def test_all_is_well_here(capsys):
    results = doctor.checks()
    assert {c.name for c in results if not c.ok} <= {"memory", "threads"}  # of a busy machine
    doctor.report()
    assert len(capsys.readouterr().out.splitlines()) <= 24  # one screen


def test_a_missing_asset_names_the_command_that_mends_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COMPRESSLAB_CACHE", str(tmp_path / "empty"))
    assert not doctor.report()
    out = capsys.readouterr().out
    assert out.count("-> make assets") == len(assets.read_manifest())
    assert "disk for them" in out


def test_another_version_of_a_package_is_found(monkeypatch):
    found = doctor.importlib.metadata.version
    monkeypatch.setattr(
        doctor.importlib.metadata, "version", lambda n: "0.1" if n == "torch" else found(n)
    )
    check = doctor.packages()
    assert not check.ok
    assert check.found.startswith("torch 0.1 instead of")


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 11, 0), (3, 14, 9), (3, 15, 0)])
def test_a_python_without_pytorch_is_refused(monkeypatch, version):
    monkeypatch.setattr(doctor.sys, "version_info", version)
    assert doctor.python().ok == (version[1] in (11, 14))


def test_little_memory_is_found(monkeypatch):
    low = doctor.psutil.virtual_memory()._replace(available=10**9)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: low)
    assert not doctor.memory().ok


def test_a_variable_that_sets_threads_is_named(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" in doctor.threads().mend
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 4)
    assert not doctor.threads().ok
