"""The README names every command and option there is, and none that is not."""

import re
from pathlib import Path

import pytest
import typer

from seeonce.commands.main import app, verify_app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
UNLISTED = {"--help", "--debug", "--durability", "--prefill-batch-size", "--prefill-step-size", "--seed"}


def _options(command: typer.Typer) -> dict[str, set[str]]:
    """Return the options of each command, by its name."""
    group = typer.main.get_command(command)
    commands = getattr(group, "commands", {"verify-cache": group})
    found: dict[str, set[str]] = {}
    for name, sub in commands.items():
        inner = getattr(sub, "commands", {name: sub})
        for own, leaf in inner.items():
            label = own if own == name else f"{name} {own}"
            found[label] = {
                option for parameter in leaf.params for option in parameter.opts if "--" in option
            }
    return found


COMMANDS = {f"seeonce {name}": options for name, options in _options(app).items()} | _options(verify_app)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"`{command}" in README


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_option_is_in_the_readme(command: str) -> None:
    assert COMMANDS[command] - UNLISTED <= set(OPTION.findall(README))


def test_the_readme_names_no_option_that_is_not_there() -> None:
    known = set().union(*COMMANDS.values()) | UNLISTED
    assert set(OPTION.findall(README)) <= known


def test_the_readme_shows_what_was_printed() -> None:
    assert "@@" not in README
