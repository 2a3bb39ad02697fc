"""``seeonce compare``: what two runs say of the same frames."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.home import Home
from seeonce.commands.arguments import RUN, AsJson, warn
from seeonce.runs.compare import Answers, Said, compare
from seeonce.runs.runs import Run, select_run
from seeonce.runs.table import comparison_lines

RECORDED = "recorded"


def compare_command(
    left: Annotated[str, typer.Argument(metavar="A", help=RUN)],
    right: Annotated[
        str, typer.Argument(metavar="B", help="Another, or recorded: what Escribano said of the frames.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare what two runs say of the same frames.

    Example: seeonce compare latest recorded
    """
    home = Home.locate()
    first = select_run(home, left, warn)
    if right == RECORDED:
        from seeonce.runs.export_escribano import recorded_descriptions

        pairs = [
            (_side(_named(left, first), first), Answers(RECORDED, recorded_descriptions(home, first.answers)))
        ]
    else:
        pairs = _pairs(left, first, right, select_run(home, right, warn))
    found = [compare(*pair) for pair in pairs]
    if as_json:
        typer.echo(json.dumps([asdict(comparison) for comparison in found]))
    else:
        typer.echo("\n\n".join("\n".join(comparison_lines(comparison)) for comparison in found))


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
