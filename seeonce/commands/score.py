"""``seeonce score``: answers against the truth."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.home import Home
from seeonce.commands.arguments import (
    RUN,
    TRUTH,
    AsJson,
    sheet_of,
    terminal_width,
    truth_beside,
    truths_of,
    warn,
)
from seeonce.commands.table import score_text, short
from seeonce.runs.find import select_run
from seeonce.runs.run import Run
from seeonce.runs.score import read_truth, score_column, why_unused
from seeonce.runs.sheet import Sheet, make_sheet


def score_command(
    run: Annotated[str, typer.Argument(help=RUN)] = "latest",
    truth: Annotated[Path | None, typer.Option(metavar="FILE", help=TRUTH)] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers against the truth.

    Frames that got another frame's answer are named.

    Example: seeonce score latest --truth truth.csv
    """
    sheet = sheet_of([select_run(Home.locate(), run, warn)])
    truths = truths_of(sheet, truth)
    if not any(truths):
        raise InputError(_no_truth(truth, sheet))
    scores = [score_column(sheet, number, known) for number, known in enumerate(truths) if known]
    if as_json:
        typer.echo(json.dumps([asdict(score) | {"exact": score.exact} for score in scores]))
    else:
        typer.echo("\n\n".join(score_text(score, terminal_width()) for score in scores))


def _no_truth(truth: Path | None, sheet: Sheet) -> str:
    first = sheet.rows[0]
    file = truth or truth_beside(first.recording, first.source)
    if file is None:
        return f"The truth about {first.recording} is not known: give a CSV file with --truth."
    return why_unused(file, read_truth(file), sheet)


def truth_lines(run: Run) -> list[str]:
    """Say how many answers of a run are true, a line a prompt, where the truth lies beside the recording."""
    sheet = make_sheet([run])
    scores = [
        score_column(sheet, number, known) for number, known in enumerate(truths_of(sheet, None)) if known
    ]
    of_several = len(sheet.columns) > 1
    return [
        f"{score.num_exact} of {score.num_scored} answers are true"
        + (f": {short(score.prompt, 60)}" if of_several else ".")
        for score in scores
    ]
