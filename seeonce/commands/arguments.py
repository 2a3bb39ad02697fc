"""Arguments that several commands take, and what they make of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import InputError
from seeonce.commands.demo_truth import known_truth
from seeonce.runs.compare import Place
from seeonce.runs.find import Run
from seeonce.runs.score import Expected, read_truth, truth_for
from seeonce.runs.sheet import Sheet, make_sheet

RUN = "latest, the id of a run, the start of one, or its name; RUN:2 is its second prompt."
TRUTH = "CSV: frame, and text, description, activity, apps or topics."
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def sheet_of(runs: list[Run]) -> Sheet:
    """Lay runs side by side. Raises ``InputError`` when they have no answers."""
    sheet = make_sheet(runs)
    if not sheet.rows:
        raise InputError(f"{runs[0].info.id} has no answers yet: see seeonce runs.")
    return sheet


def truths_of(sheet: Sheet, truth: Path | None) -> list[Mapping[Place, Expected]]:
    """Return what is known of the frames of each column: by a file, or of the demo by itself."""
    if truth is None:
        return [known_truth(column, sheet.rows) for column in sheet.columns]
    rows = read_truth(truth)
    return [truth_for(rows, column, sheet.rows) for column in sheet.columns]


def warn(line: str) -> None:
    """Print a warning on standard error."""
    typer.echo(f"warning: {line}", err=True)
