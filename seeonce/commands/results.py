"""``seeonce runs``, ``report``, ``compare`` and ``score``: options and what is done with runs.

Owns no figures and no printed form of them (``seeonce.runs.table``). What only others know, the truth about
the demo, comes in as ``Wiring``, set by the front door.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.files import write_private
from cache.base.home import Home
from seeonce.commands.demo_truth import known_truth
from seeonce.runs.compare import Answers, Said, compare
from seeonce.runs.runs import Run, list_runs, select_run
from seeonce.runs.score import read_truth, score_column, truth_for
from seeonce.runs.sheet import Sheet, make_sheet
from seeonce.runs.table import comparison_lines, runs_table, score_lines

RECORDED = "recorded"


_RUN = "latest, the id of a run, the start of one, or its name; RUN:2 is its second prompt."
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def runs_command(as_json: AsJson = False) -> None:
    """List the runs there are, newest first.

    Example: seeonce runs
    """
    runs = list_runs(Home.locate())
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in runs]))
    else:
        typer.echo(runs_table(runs) or "No runs yet: run seeonce describe first.")


def report_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help=_RUN)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write runs side by side into one HTML file.

    It has pictures in it, and works offline.

    Example: seeonce report latest -o report.html
    """
    from seeonce.runs.report import Pictures, render_report

    home = Home.locate()
    sheet = _sheet([select_run(home, run, _warn) for run in runs])
    pictures = Pictures(home, {row.recording for row in sheet.rows})
    page = render_report(sheet, pictures.picture, pictures.num_tokens).encode("utf-8")
    write_private(output, page)
    typer.echo(
        f"{output}: {len(sheet.rows)} frames, {len(sheet.columns)} prompts, {len(page) / 1e6:.1f} MB. "
        "It contains pictures of screens."
    )


def compare_command(
    left: Annotated[str, typer.Argument(metavar="A", help=_RUN)],
    right: Annotated[
        str, typer.Argument(metavar="B", help="Another, or recorded: what Escribano said of the frames.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare what two runs say of the same frames.

    Example: seeonce compare latest recorded
    """
    home = Home.locate()
    first = select_run(home, left, _warn)
    if right == RECORDED:
        from seeonce.runs.export_escribano import recorded_descriptions

        pairs = [
            (_side(_named(left, first), first), Answers(RECORDED, recorded_descriptions(home, first.answers)))
        ]
    else:
        pairs = _pairs(left, first, right, select_run(home, right, _warn))
    found = [compare(*pair) for pair in pairs]
    if as_json:
        typer.echo(json.dumps([asdict(comparison) for comparison in found]))
    else:
        typer.echo("\n\n".join("\n".join(comparison_lines(comparison)) for comparison in found))


def score_command(
    run: Annotated[str, typer.Argument(help=_RUN)] = "latest",
    truth: Annotated[
        Path | None, typer.Option(help="CSV: frame, and text, description, activity, apps or topics.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score answers against the truth.

    Frames that got another frame's answer are named.

    Example: seeonce score latest --truth truth.csv
    """
    sheet = _sheet([select_run(Home.locate(), run, _warn)])
    rows = None if truth is None else read_truth(truth)
    truths = [
        known_truth(column, sheet.rows) if rows is None else truth_for(rows, column, sheet.rows)
        for column in sheet.columns
    ]
    if not any(truths):
        raise InputError(_no_truth(truth, sheet))
    scores = [score_column(sheet, number, known) for number, known in enumerate(truths) if known]
    if as_json:
        typer.echo(json.dumps([asdict(score) | {"exact": score.exact} for score in scores]))
    else:
        typer.echo("\n\n".join("\n".join(score_lines(score)) for score in scores))


def _sheet(runs: list[Run]) -> Sheet:
    sheet = make_sheet(runs)
    if not sheet.rows:
        raise InputError(f"{runs[0].info.id} has no answers yet: see seeonce runs.")
    return sheet


def _pairs(left: str, first: Run, right: str, second: Run) -> list[tuple[Answers, Answers]]:
    """Pair prompts of equal text; when none are, and each run has one prompt, those two."""
    mine = list(dict.fromkeys(answer.prompt for answer in first.answers))
    yours = list(dict.fromkeys(answer.prompt for answer in second.answers))
    shared = [prompt for prompt in mine if prompt in yours]
    if len(mine) == len(yours) == 1:
        return [(_side(_named(left, first), first), _side(_named(right, second), second))]
    if not shared:
        raise InputError(
            f"{left} and {right} have no prompt in common: name one of each, as in {left}:1 {right}:1."
        )
    return [
        (
            _side(f"{_named(left, first)}: {prompt}", first, prompt),
            _side(f"{_named(right, second)}: {prompt}", second, prompt),
        )
        for prompt in shared
    ]


def _named(name: str, run: Run) -> str:
    """Name one side by its run, and by how its prompts were asked."""
    manner = str(run.info.manner)
    return f"{name} ({manner})" if manner else name


def _side(name: str, run: Run, prompt: str | None = None) -> Answers:
    answers = [answer for answer in run.answers if prompt in (None, answer.prompt)]
    if len({answer.prompt for answer in answers}) > 1:
        raise InputError(f"{name} has several prompts: name one, as in {name}:1.")
    said = {
        (answer.recording, answer.frame): Said(answer.text, answer.description)
        for answer in answers
        if answer.error is None
    }
    return Answers(name, said, sum(answer.error is not None for answer in answers))


def _no_truth(truth: Path | None, sheet: Sheet) -> str:
    if truth is None:
        return f"The truth about {sheet.rows[0].recording} is not known: give a CSV file with --truth."
    return f"--truth {truth} names no frame of {sheet.rows[0].recording}: frames are named by index or file."


def _warn(line: str) -> None:
    typer.echo(f"warning: {line}", err=True)
