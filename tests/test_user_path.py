"""Paths as users write them: the home of a user who is not there is a path like any other."""

import shutil
from pathlib import Path

import pytest
from conftest import HomeAfter, Run
from run_samples import answer
from test_results_commands import FIRST, write_run

from cache.base.text import user_path


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a b") == user_path(Path("~/a b")) == tmp_path / "a b"
    assert user_path("~nobody-here/a") == Path("~nobody-here/a")


@pytest.mark.parametrize(
    "line",
    [
        "seeonce encode ~nobody-here --model demo",
        "seeonce describe ~nobody-here --model demo",
        "seeonce encode demo --model ~nobody-here/model",
        "seeonce describe demo --prompt-file ~nobody-here/question.txt",
        "seeonce describe demo --schema ~nobody-here/schema.json",
        "seeonce report latest -o ~nobody-here/report.html",
        "seeonce store forget ~nobody-here",
        "verify-cache ~nobody-here",
    ],
)
def test_a_user_who_is_not_there_is_one_line(line: str, run: Run, home: Path, home_after: HomeAfter) -> None:
    shutil.copytree(home_after(("seeonce encode demo --limit 1",)), home)
    write_run(home, FIRST, [answer(0, "a")])
    assert "~nobody-here" in run(line).error


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("seeonce describe demo --output -", "--output"),
        ("seeonce report latest -o -", "--output"),
        ("verify-cache demo --report -", "--report"),
    ],
)
def test_standard_output_is_not_taken_for_a_file(
    line: str, option: str, run: Run, home: Path, home_after: HomeAfter, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home_after(("seeonce encode demo --limit 1",)), home)
    write_run(home, FIRST, [answer(0, "a")])
    assert run(line).error == f"error: {option} - is no file: name one, as in {option} ./-"
    assert not (tmp_path / "-").exists()
