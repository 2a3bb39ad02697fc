"""``seeonce report``: runs side by side in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.files import write_private
from cache.base.home import Home
from cache.base.text import counted
from seeonce.commands.arguments import RUN, TRUTH, sheet_of, truths_of, warn
from seeonce.runs.export.recorded import recorded_run
from seeonce.runs.find import EXPERIMENT_SEPARATOR, RECORDED, select_runs
from seeonce.runs.run import Run
from seeonce.runs.score import read_truth, why_unused


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help=f"{RUN} An experiment's name is all of its runs; recorded, what Escribano said.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    large: Annotated[
        bool, typer.Option("--large", help="Larger pictures, from recordings that are still there.")
    ] = False,
    truth: Annotated[Path | None, typer.Option(metavar="FILE", help=TRUTH)] = None,
) -> None:
    """Write runs side by side into one HTML file.

    It has pictures in it, and works offline. Differences are marked against the first run; the page itself
    takes another as baseline.

    Example: seeonce report latest -o report.html
    """
    from seeonce.runs.report.pictures import Pictures
    from seeonce.runs.report.report import render_report

    home = Home.locate()
    chosen = _chosen(home, runs)
    sheet = sheet_of(chosen)
    truths = truths_of(sheet, truth)
    if truth is not None and not any(truths):
        warn(why_unused(truth, read_truth(truth), sheet))
    pictures = Pictures(home, {row.recording for row in sheet.rows})
    page = render_report(
        sheet,
        pictures.large_picture if large else pictures.picture,
        pictures.num_tokens,
        truths,
        _title(chosen),
        pictures.manifests,
    ).encode("utf-8")
    write_private(output, page)
    num_prompts = len({column.prompt for column in sheet.columns})
    typer.echo(
        f"{output}: {counted(len(sheet.rows), 'frame')}, {counted(num_prompts, 'prompt')}, "
        f"{len(page) / 1e6:.1f} MB. It contains pictures of screens."
    )


def _chosen(home: Home, selectors: list[str]) -> list[Run]:
    """Return the runs that are named, each once; ``recorded`` is about the frames of all others."""
    found = [run for name in selectors if name != RECORDED for run in select_runs(home, name, warn)]
    if RECORDED in selectors:
        if not found:
            raise InputError("recorded is what was said of a run's frames: name a run, too.")
        found.append(recorded_run(home, [answer for run in found for answer in run.answers]))
    return found


def _title(runs: list[Run]) -> str:
    """Return the experiment, or the name, that all runs have; else an empty text."""
    names = {run.info.name.partition(EXPERIMENT_SEPARATOR)[0] for run in runs if run.info.id != RECORDED}
    return names.pop() if len(names) == 1 else ""
