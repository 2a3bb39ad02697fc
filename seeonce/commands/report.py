"""``seeonce report``: runs side by side in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cache.base.files import write_private
from cache.base.home import Home
from seeonce.commands.arguments import RUN, sheet_of, warn
from seeonce.runs.runs import select_run


def report_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help=RUN)],
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
    sheet = sheet_of([select_run(home, run, warn) for run in runs])
    pictures = Pictures(home, {row.recording for row in sheet.rows})
    page = render_report(sheet, pictures.picture, pictures.num_tokens).encode("utf-8")
    write_private(output, page)
    typer.echo(
        f"{output}: {len(sheet.rows)} frames, {len(sheet.columns)} prompts, {len(page) / 1e6:.1f} MB. "
        "It contains pictures of screens."
    )
