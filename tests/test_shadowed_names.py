"""Beside a stranger's module with one of our names commands work, and the API says what is in the way."""

import subprocess
import sys
from pathlib import Path

import pytest

from seeonce.packages import PACKAGES

ROOT = Path(__file__).parent.parent
EACH_AS_A_MODULE = """
import runpy, sys
for line in sys.argv[1:]:
    sys.argv = ["seeonce", *line.split()]
    try:
        runpy.run_module("seeonce", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
sys.exit(code)
"""


def _python(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, whose modules come first, as they do for a user's own script."""
    environment = {"PYTHONPATH": f"{place}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(place)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=place, env=environment, timeout=120
    )


@pytest.fixture(params=["cache.py", "infer/__init__.py", "sources/notes.txt", "checkpoint.py"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a module, a package, a mere folder of one of our names."""
    stranger = tmp_path / request.param
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("raise RuntimeError('not ours')\n" if stranger.suffix == ".py" else "notes\n")
    return tmp_path


def test_commands_work_beside_modules_of_all_our_names(tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
    ended = _python(tmp_path, "-c", EACH_AS_A_MODULE, "--help", "store stats", "runs")
    assert "Traceback" not in ended.stderr
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (
        0,
        "No runs yet: run seeonce describe first.",
    )


def test_the_api_says_in_one_line_what_is_in_the_way(place: Path) -> None:
    ended = _python(place, "-c", "from seeonce import encode")
    name = next(path.stem for path in place.iterdir() if path.stem in PACKAGES)
    if (place / name).is_dir() and not (place / name / "__init__.py").exists():
        assert ended.returncode == 0  # a folder without a module gives way to a package that comes later
        return
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: 'import {name}' finds {place}")
    assert last.endswith("rename that file or folder, or start Python elsewhere.")


def test_importing_seeonce_alone_is_no_error(place: Path) -> None:
    assert _python(place, "-c", "import seeonce; print(seeonce.__name__)").stdout == "seeonce\n"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_of_our_names_that_is_taken_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
    assert f"'import {name}' finds" in _python(tmp_path, "-c", "import seeonce; seeonce.ask").stderr
