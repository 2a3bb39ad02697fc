"""The pages name every command and option there is, and none that is not."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from seeonce.commands.main import app, verify_app
from seeonce.commands.reference import MARK, reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
FOREIGN = {
    "--help",
    "--debug",
    "--mllm",
    "--continuous-batching",
    "--port",
    "--array",
    "--gpus",
    "--parsable",
    "--dependency",
    "--wrap",
}  # of others' servers, too
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def _helps() -> dict[str, set[str]]:
    """Return the options of each command, by its name."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = {
            option
            for parameter in command.params
            for option in [*parameter.opts, *parameter.secondary_opts]
            if "--" in option
        }
        for own, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{name} {own}")

    walk(typer.main.get_command(app), "seeonce")
    walk(typer.main.get_command(verify_app), "verify-cache")
    return found


COMMANDS = _helps()


def _help(command: str) -> str:
    return PAGE.partition(f"\n## {command}\n")[2].partition("\n## ")[0]


def test_the_page_of_commands_is_what_their_help_says() -> None:
    assert PAGE.partition(MARK)[2] == reference(), "run make docs"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_and_option_is_on_the_page(command: str) -> None:
    assert COMMANDS[command] <= set(OPTION.findall(_help(command)))


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_names_arguments_plainly_and_no_type_of_python(command: str) -> None:
    usage = _help(command).partition("Usage: ")[2].splitlines()[0]
    assert re.fullmatch(rf"{command} \[OPTIONS\]( COMMAND \[ARGS\]...| \[?[A-Z]+\]?(\.\.\.)?)*", usage)
    assert not re.search(r"list\[|Optional|None\b|\]\.\.\.\]", _help(command))


def test_an_error_that_leads_to_a_page_leads_to_one_that_is_there() -> None:
    packages = ("cache", "checkpoint", "infer", "precompute", "seeonce", "sources")
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    for file in files:
        for text in _texts(file):
            for page in re.findall(r"[\w./-]+\.md\b|\bREADME\b", text):
                place = ROOT / ("README.md" if page == "README" else page)
                assert place.is_file(), f"{file}: {text}"
            if section := re.search(r"README(?:\.md)?, ([A-Z]\w+)", text):
                assert re.search(rf"^#+ .*{section[1]}", README, re.MULTILINE), f"{file}: {text}"


def _texts(file: Path) -> list[str]:
    """Return the texts of a module that may name a page and are no docstrings: what a user may be told."""
    text = file.read_text(encoding="utf-8")
    if ".md" not in text and "README" not in text:
        return []
    tree = ast.parse(text)
    docs = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs
    ]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_page_names_an_option_that_is_not_there(page: Path) -> None:
    if "decisions" in page.parts:
        pytest.skip("history")
    known = set().union(*COMMANDS.values()) | FOREIGN
    assert set(OPTION.findall(page.read_text(encoding="utf-8"))) <= known


def test_the_readme_is_short_and_shows_what_was_printed() -> None:
    assert len(README.splitlines()) <= 130
    assert "@@" not in README
