"""Writes the commands' own help into docs/commands.md: ``make docs``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from seeonce.commands.main import app, verify_app

_WIDTH = 100
MARK = "<!-- What follows is made by `make docs` from the commands' own help. -->\n\n"


def reference() -> str:
    """Return each command's help as a section of Markdown."""
    return "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in _helps())


def _helps() -> Iterator[tuple[str, str]]:
    """Yield each command's name and its help, as it is printed in 100 columns."""
    for program, command in (("seeonce", app), ("verify-cache", verify_app)):
        yield from _of(typer.main.get_command(command), program)


def _of(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    width = {"max_content_width": _WIDTH, "terminal_width": _WIDTH}
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, **width)
    lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
    yield context.command_path, "\n".join(lines)
    for own, sub in getattr(command, "commands", {}).items():
        yield from _of(sub, own, context)


if __name__ == "__main__":
    page = Path("docs/commands.md")
    head = page.read_text(encoding="utf-8").partition(MARK)[0]
    page.write_text(head + MARK + reference(), encoding="utf-8")
