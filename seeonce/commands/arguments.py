"""Arguments that several commands take, and what they make of them."""

from typing import Annotated

import typer

from cache.base.errors import InputError
from seeonce.runs.runs import Run
from seeonce.runs.sheet import Sheet, make_sheet

RUN = "latest, the id of a run, the start of one, or its name; RUN:2 is its second prompt."
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def sheet_of(runs: list[Run]) -> Sheet:
    """Lay runs side by side. Raises ``InputError`` when they have no answers."""
    sheet = make_sheet(runs)
    if not sheet.rows:
        raise InputError(f"{runs[0].info.id} has no answers yet: see seeonce runs.")
    return sheet


def warn(line: str) -> None:
    """Print a warning on standard error."""
    typer.echo(f"warning: {line}", err=True)
