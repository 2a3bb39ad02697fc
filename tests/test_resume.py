"""A run that was stopped goes on: the same settings, no line twice, and equal to one that was not stopped."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from checkpoint_edits import copy_of
from conftest import HomeAfter, Run
from screens import folder_of, stopped

from cache.base.errors import InputError
from seeonce.runs.lock import RunLock
from seeonce.runs.writer import OutputFile

SETTINGS = "--prompt A? --prompt B? --temperature 1 --seed 4 --max-tokens 8 --max-num-seqs 4 --fresh"


@pytest.fixture(scope="module")
def encode(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command line that encodes 12 frames."""
    folder = folder_of(tmp_path_factory.mktemp("recordings") / "tuesday", 12)
    return "seeonce encode", folder, "--model", plain


@pytest.fixture
def encoded(home_after: HomeAfter, encode: tuple[object, ...], home: Path) -> Path:
    return shutil.copytree(home_after(encode), home)


def _newest(home: Path) -> Path:
    return max((home / "runs").iterdir())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _set(run: Path) -> list[str]:
    """Return the lines of a run in an order that does not depend on when they were written."""
    return sorted(json.dumps(line, sort_keys=True) for line in _lines(run / "results.jsonl"))


def _killed(home: Path, plain: Path, num_lines: int) -> Path:
    """Start a run and kill it when it has so many answers."""
    words = [*SETTINGS.split(), "tuesday", "--model", plain]
    stopped(home, num_lines, signal.SIGKILL, "describe", *words)
    return _newest(home)


def _cut(run: Path, num_lines: int, status: str = "interrupted") -> None:
    """Leave so many lines of a finished run, and say in run.json that it was stopped."""
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    (run / "results.jsonl").write_bytes(b"".join(lines[:num_lines]))
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": status}))


def test_a_killed_run_that_goes_on_equals_one_that_was_not_stopped(
    run: Run, encoded: Path, plain: Path
) -> None:
    killed = _killed(encoded, plain, 4)
    before = (killed / "results.jsonl").read_bytes().split(b"\n")[:-1]
    assert 4 <= len(before) < 24
    assert run("seeonce runs --json").json[0]["state"] == "interrupted"
    resumed = run("seeonce describe --json --resume latest")
    assert resumed.code == 0, resumed.err
    after = (killed / "results.jsonl").read_bytes().split(b"\n")
    assert set(before) <= set(after)
    assert (resumed.json["id"], resumed.json["totals"]["num_results"]) == (killed.name, 24)
    assert run(f"seeonce describe {SETTINGS} tuesday --model", plain).code == 0
    assert _set(killed) == _set(_newest(encoded))


@pytest.fixture
def finished(home_after: HomeAfter, encode: tuple[object, ...], home: Path, plain: Path) -> Path:
    """A finished run of two prompts over 12 frames."""
    described = home_after(encode, (f"seeonce describe {SETTINGS} tuesday --model", plain))
    return _newest(shutil.copytree(described, home))


def test_a_torn_last_line_is_asked_again(run: Run, finished: Path) -> None:
    whole = _set(finished)
    _cut(finished, 20)
    with (finished / "results.jsonl").open("ab") as file:
        file.write(b'{"recording": "tues')
    assert run("seeonce describe --resume latest").code == 0
    assert _set(finished) == whole


def test_an_error_line_is_asked_again_and_a_finished_one_is_not(run: Run, finished: Path) -> None:
    whole = _lines(finished / "results.jsonl")
    changed = [*whole[:-1], whole[-1] | {"error": "it failed", "text": "", "finish_reason": "error"}]
    changed[0] = changed[0] | {"text": "said before"}
    (finished / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    ended = run("seeonce describe --json --resume latest")
    assert (ended.code, ended.json["totals"]["num_errors"]) == (0, 0)
    after = _lines(finished / "results.jsonl")
    assert [line["text"] for line in after if line["error"] is None].count("said before") == 1
    assert whole[-1] in after


def test_a_finished_run_does_nothing_and_says_so(
    run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seeonce.runs.describe.Session.engine", lambda *_: pytest.fail("decoded"))
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.iterdir()}
    ended = run("seeonce describe --resume", finished.name)
    assert (ended.code, "nothing left to ask" in ended.out) == (0, True)
    assert files == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.iterdir()}


def test_a_run_goes_on_with_one_model_only(run: Run, encoded: Path, plain: Path, tmp_path: Path) -> None:
    model = copy_of(plain, tmp_path / "model")
    assert run("seeonce describe --max-tokens 2 tuesday --model", model).code == 0
    finished = _newest(encoded)
    _cut(finished, 3)
    (model / "generation_config.json").write_text("{}")
    refused = run("seeonce describe --resume latest")
    assert (refused.code, "has other files now" in refused.error) == (1, True)
    assert len(_lines(finished / "results.jsonl")) == 3


def test_a_run_goes_on_with_the_versions_that_it_began_with(
    run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut(finished, 3)
    monkeypatch.setattr("seeonce.runs.plan.computed_by", lambda: "another device")
    refused = run("seeonce describe --resume latest")
    assert (refused.code, "device" in refused.error) == (1, True)


def test_a_run_that_goes_on_elsewhere_is_refused(run: Run, finished: Path) -> None:
    with RunLock(finished):
        refused = run("seeonce describe --resume latest")
    assert (refused.code, "another process" in refused.error) == (1, True)


def test_other_options_beside_resume_are_refused_by_name(run: Run, finished: Path) -> None:
    refused = run("seeonce describe --resume latest --seed 5 tuesday")
    assert "leave out" in refused.error
    assert "--seed" in refused.error
    assert "RECORDING" in refused.error


@pytest.mark.parametrize("content", ["", "[]", '{"id": "x"}', '{"id": "x", "prompts": 3}'])
def test_a_run_that_cannot_be_read_is_one_line(content: str, run: Run, finished: Path) -> None:
    (finished / "run.json").write_text(content)
    assert "run.json" in run("seeonce describe --resume", finished.name).error


def test_a_resumed_run_writes_all_of_it_to_an_output(run: Run, finished: Path, tmp_path: Path) -> None:
    whole = _set(finished)
    _cut(finished, 9)
    assert run("seeonce describe --resume latest --output", tmp_path / "out.jsonl").code == 0
    assert sorted(json.dumps(line, sort_keys=True) for line in _lines(tmp_path / "out.jsonl")) == whole


# --- the user's own file


def test_two_runs_never_mix_their_lines_in_one_output(run: Run, encoded: Path, plain: Path) -> None:
    output = encoded / "out.jsonl"
    with OutputFile(output) as file:
        file.write(b"mine\n")
        refused = run("seeonce describe --max-tokens 2 tuesday --model", plain, "--output", output)
    assert (refused.code, "another run" in refused.error) == (1, True)
    assert output.read_bytes() == b"mine\n"


def test_an_output_is_emptied_by_its_first_line_only(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"earlier\n")
    with OutputFile(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_bytes() == b"earlier\n"
    with OutputFile(tmp_path / "out") as file:
        file.write(b"one\n")
        file.write(b"two\n")
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"


def test_a_lock_is_taken_once_and_ends_with_its_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        RunLock(tmp_path / "run")
    with RunLock(tmp_path / "run"):
        pass
