"""What a user asks when something is amiss: seeonce doctor, --version, and the help."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of

from cache.base.home import Home
from infer.canary import RECURRENT, Verdict, combination, remember


def test_doctor_names_versions_device_memory_store_model_and_canary(run: Run) -> None:
    ended = run("seeonce doctor")
    begins = [line.split()[0] for line in ended.out.splitlines()]
    assert ended.code == 0
    assert [word for word in begins if word not in ("BLAS", "compiler")] == [
        "versions", "device", "memory", "store", "model", "canary",
    ]  # fmt: skip
    assert "mlx-vlm 0." in ended.out.splitlines()[0]


def test_doctor_counts_the_store_and_names_what_is_damaged(
    run: Run, plain: Path, tmp_path: Path, home: Path
) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", plain).code == 0
    assert "3 entries of 1 recording" in run("seeonce doctor").out
    chunk = next(home.rglob("c.0.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    assert run("seeonce describe --max-tokens 2", images, "--model", plain).code == 3
    store = next(line for line in run("seeonce doctor").out.splitlines() if line.startswith("store"))
    assert "note: " in store
    assert store.endswith("1 damaged: run seeonce store repair")


def test_doctor_names_no_private_path(
    run: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_MODEL", str(plain))
    assert run("seeonce encode", folder_of(tmp_path / "images")).code == 0
    ended = run("seeonce doctor --json")
    assert str(tmp_path) not in ended.out
    assert str(plain.parent) not in ended.out
    assert {finding["state"] for finding in ended.json} <= {"ok", "note"}


def test_doctor_says_what_is_broken_and_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "seeonce.commands.doctor.installed_version", lambda name: "" if name == "zarr" else "1.0"
    )
    ended = run("seeonce doctor")
    assert ended.code == 1
    assert "broken: " in ended.out.splitlines()[0]
    assert ended.out.splitlines()[0].endswith("install zarr, or seeonce again")


def test_doctor_says_that_the_home_may_not_be_looked_into(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("cache.base.home.os.scandir", forbidden)
    ended = run("seeonce doctor --json")
    (store,) = (finding for finding in ended.json if finding["what"] == "store")
    assert (ended.code, store["state"]) == (1, "broken")
    assert 'run chmod 700 "$SEEONCE_HOME"' in store["words"]


def test_doctor_tells_of_what_was_tried_with_either_kind_of_layers(run: Run, home: Path) -> None:
    home.mkdir()
    remember(Home(home), replace(combination(), layers=RECURRENT), Verdict.one_by_one)
    canary = next(line for line in run("seeonce doctor").out.splitlines() if line.startswith("canary"))
    assert "one by one" in canary


def test_a_model_that_is_not_here_is_a_note(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEEONCE_MODEL", "nobody/nothing")
    model = next(line for line in run("seeonce doctor").out.splitlines() if line.startswith("model"))
    assert "note: nobody/nothing is not here" in model


def test_the_version_is_printed(run: Run) -> None:
    ended = run("seeonce --version")
    assert (ended.code, ended.out) == (0, "seeonce 0.1.0\n")


def test_verify_is_verify_cache(run: Run, plain: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", plain).code == 0
    mine = run("seeonce verify --level bytes", images, "--model", plain)
    other = run("verify-cache --level bytes", images, "--model", plain)
    assert (mine.code, mine.out) == (other.code, other.out) == (0, mine.out)
    assert (
        run("seeonce verify", tmp_path / "nothing").code
        == run("verify-cache", tmp_path / "nothing").code
        == 2
    )


def test_no_summary_in_the_help_is_cut_off(run: Run) -> None:
    for line in ("seeonce --help", "seeonce store --help"):
        ended = run(line)
        assert ended.code == 0
        assert "..." not in ended.out.partition("Commands:")[2]
