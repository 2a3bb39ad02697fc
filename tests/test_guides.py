"""Every guide's commands work as printed, one after the other, on a recording that anyone can make."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from escribano_samples import sample

from cache.base.home import Home
from infer.canary import Verdict, combination, remember

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
CONSOLE = re.compile(r"```console\n(.*?)```", re.S)
PYTHON = re.compile(r"```python\n(.*?)```", re.S)


def _commands(page: str) -> list[str]:
    """Return what stands behind the prompts of a page's console blocks."""
    return [line[2:] for block in CONSOLE.findall(page) for line in block.splitlines() if line[:2] == "$ "]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user with the demo's model, a recording of five frames, and a database of Escribano's."""
    user = tmp_path_factory.mktemp("user")
    monday = user / "Recordings" / "monday"
    monday.mkdir(parents=True)
    for picture in sorted((ROOT / "seeonce" / "demo" / "recording").glob("000[0-4]*.png")):
        shutil.copy(picture, monday)
    sample(user / ".escribano")
    home = Home(user / ".seeonce")
    home.prepare()
    remember(home, combination(), Verdict.batched)  # test_canary runs the trial
    programs = user / "bin"
    programs.mkdir()
    for name, function in (("seeonce", "main"), ("verify-cache", "verify_cache")):
        program = programs / name
        program.write_text(f"#!{sys.executable}\nfrom seeonce.__main__ import {function}\n{function}()\n")
        program.chmod(0o755)
    return {
        "HOME": str(user),
        "PATH": f"{programs}:/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SEEONCE_MODEL": "demo",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_commands_of_a_guide_work(guide: Path, environment: dict[str, str], tmp_path: Path) -> None:
    page = guide.read_text(encoding="utf-8")
    script = "\n".join(["set -e", "trap 'jobs -p | xargs -r kill' EXIT", *_commands(page)])
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    program = "\n".join(PYTHON.findall(page))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env=environment | {"PYTHONPATH": environment["PYTHONPATH"] or str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_there_is_a_guide_for_each_task_and_each_shows_something_to_run() -> None:
    names = [guide.stem for guide in GUIDES]
    assert names == ["compare-prompts", "describe", "escribano", "gpu", "python", "serve", "store"]
    for guide in GUIDES:
        page = guide.read_text(encoding="utf-8")
        assert _commands(page) or PYTHON.findall(page) or "Not run by a test" in page
