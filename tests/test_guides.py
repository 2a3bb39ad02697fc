"""Every guide's commands work as printed, one after the other, on a recording that anyone can make."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import Run
from escribano_samples import sample

from cache.base.home import Home
from infer.canary import Verdict, combination, remember
from precompute import watch

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
CONSOLE = re.compile(r"```console\n(.*?)```", re.S)
PYTHON = re.compile(r"```python\n(.*?)```", re.S)


def _commands(page: str) -> list[str]:
    """Return what stands behind the prompts of a page's console blocks."""
    return [line[2:] for block in CONSOLE.findall(page) for line in block.splitlines() if line[:2] == "$ "]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user with a recording of five frames and a database of Escribano's."""
    user = tmp_path_factory.mktemp("user")
    monday = user / "Recordings" / "monday"
    monday.mkdir(parents=True)
    for picture in sorted((ROOT / "seeonce" / "demo" / "recording").glob("000[0-4]*.png")):
        shutil.copy(picture, monday)
    sample(user / ".escribano")
    home = Home(user / ".seeonce")
    home.prepare()
    remember(home, combination(), Verdict.batched)  # test_canary runs the trial
    return user


@pytest.fixture(autouse=True)
def _a_watch_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End a watch after its first look, as Ctrl-C would."""
    monkeypatch.setattr(watch, "_changes", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(os, "nice", Mock())
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _typed(script: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let a shell run a script, and return what it gives our commands, which it finds as stand-ins."""
    for name in ("seeonce", "verify-cache"):
        program = place / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!/bin/sh\n{{ printf '%s\\0' {name} \"$@\"; echo; }} >>'{place}/typed'\n"
            'case "$*" in *--watch) exec sleep 60;; esac\n'  # until the page ends it
        )
        program.chmod(0o755)
    (place / "typed").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", f"{place}/bin:/usr/bin:/bin")
    done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (place / "typed").read_text() if (place / "typed").exists() else ""
    return [line.split("\0")[:-1] for line in lines.splitlines()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_commands_of_a_guide_work(
    guide: Path, user: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEEONCE_HOME")
    monkeypatch.setenv("HOME", str(user))
    monkeypatch.setenv("SEEONCE_MODEL", "demo")
    monkeypatch.chdir(tmp_path)
    page = guide.read_text(encoding="utf-8")
    lines = _commands(page)
    served = [at for at, line in enumerate(lines) if "seeonce serve" in line or "curl" in line]
    first, end = (served[0], served[-1] + 1) if served else (len(lines), len(lines))
    _run_as_typed("\n".join(lines[:first]), run, tmp_path, monkeypatch)
    if served:
        _run_as_processes("\n".join(lines[first:end]), tmp_path)
    _run_as_typed("\n".join(lines[end:]), run, tmp_path, monkeypatch)
    code = "\n".join(PYTHON.findall(page))
    exec(code.replace('EncodeOptions("demo")', 'EncodeOptions("demo", limit=6)'), {})


def _run_as_typed(script: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in-process what a shell makes of a script."""
    for program, *words in _typed(script, place, monkeypatch):
        ended = run(program, *words)
        assert ended.code == 0, ended.out + ended.err


def _run_as_processes(script: str, place: Path) -> None:
    """Let a shell run a script with the commands themselves; what it left running ends with it."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    program = place / "bin" / "seeonce"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!{sys.executable}\nfrom seeonce.__main__ import main\nmain()\n")
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", f"trap 'jobs -p | xargs -r kill' EXIT\n{script}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{place}/bin:/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_line_of_a_job_asks_for_the_shard_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8", "JOB_COMPLETION_INDEX": "1"}
    second |= {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "8"}
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    page = (ROOT / "docs" / "guides" / "fleet.md").read_text(encoding="utf-8")
    jobs = re.findall(r"```(?:bash|yaml)\n(.*?)```", page, re.S)
    lines = [line.strip() for job in jobs for line in job.splitlines() if "--shard" in line]
    typed = _typed("\n".join(lines), tmp_path, monkeypatch)
    assert typed == [
        ["seeonce", "encode", "/data/monday", "--to", "s3://screens/2026", "--shard", "2/8"] for _ in range(3)
    ]


def test_what_a_shell_makes_of_a_line_is_what_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    typed = _typed("seeonce encode ~/a 'b  c' \"$HOME\"\nverify-cache", tmp_path, monkeypatch)
    assert typed == [["seeonce", "encode", "/home/me/a", "b  c", "/home/me"], ["verify-cache"]]
    with pytest.raises(AssertionError):
        _typed("seeonc encode", tmp_path, monkeypatch)


def test_there_is_a_guide_for_each_task_and_each_shows_something_to_run() -> None:
    names = [guide.stem for guide in GUIDES]
    assert names == [
        "bucket",
        "compare-prompts",
        "describe",
        "escribano",
        "fleet",
        "gpu",
        "python",
        "serve",
        "store",
    ]
    for guide in GUIDES:
        page = guide.read_text(encoding="utf-8")
        assert _commands(page) or PYTHON.findall(page) or "Not run by a test" in page
