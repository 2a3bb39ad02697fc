"""``seeonce runs``: the runs there are."""

import json

import typer

from cache.base.home import Home
from seeonce.commands.arguments import AsJson, terminal_width
from seeonce.commands.table import runs_table
from seeonce.runs.find import list_runs


def runs_command(as_json: AsJson = False) -> None:
    """List the runs there are, newest first.

    Example: seeonce runs
    """
    runs = list_runs(Home.locate())
    if as_json:
        typer.echo(json.dumps([run.as_dict() for run in runs]))
    else:
        typer.echo(runs_table(runs, terminal_width()) or "No runs yet: run seeonce describe first.")
