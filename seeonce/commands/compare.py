"""``seeonce compare``: what two runs say of the same frames."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.text import visible
from seeonce.commands.arguments import RUN, AsJson, terminal_width, warn
from seeonce.commands.table import comparison_text
from seeonce.runs.compare import Answers, Said, compare
from seeonce.runs.export.recorded import recorded_run
from seeonce.runs.find import RECORDED, select_run
from seeonce.runs.run import Run


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
    first = _answered(home, left)
    if right == RECORDED:
        second = recorded_run(home, first.answers)
        pairs = [(_side(_named(left, first, second), first), _side(right, second))]
    else:
        second = _answered(home, right)
        pairs = _pairs(left, first, right, second)
    found = [compare(*pair) for pair in pairs]
    if not any(one.num_frames for one in found):
        raise InputError(_nothing_common(left, first, right, second))
    if as_json:
        typer.echo(json.dumps([asdict(comparison) for comparison in found]))
    else:
        typer.echo("\n\n".join(comparison_text(one, terminal_width()) for one in found))


def _answered(home: Home, name: str) -> Run:
    run = select_run(home, name, warn)
    if run.num_errors == len(run.answers):
        raise InputError(f"{name} has no answers{' but errors' if run.answers else ''}: see seeonce runs.")
    return run


def _nothing_common(left: str, first: Run, right: str, second: Run) -> str:
    """Say why two runs cannot be compared."""
    mine, yours = ({answer.recording for answer in run.answers} for run in (first, second))
    about = [visible(", ".join(sorted(recordings))) for recordings in (mine, yours)]
    if mine & yours:
        return f"{left} and {right} have no frame of {about[0]} in common that both answered."
    return (
        f"{left} is about {about[0]} and {right} about {about[1]}: they have no frame in common; name two "
        "runs about one recording, see seeonce runs."
    )


def _pairs(left: str, first: Run, right: str, second: Run) -> list[tuple[Answers, Answers]]:
    """Pair prompts of equal text; without any, and with one prompt in each run, those two."""
    mine, yours = first.answered_prompts, second.answered_prompts
    shared = [prompt for prompt in mine if prompt in yours]
    if len(mine) == len(yours) == 1:
        return [(_side(_named(left, first, second), first), _side(_named(right, second, first), second))]
    if not shared:
        raise InputError(
            f"{left} and {right} have no prompt in common: name one of each, as in {left}:1 {right}:1."
        )
    return [
        (
            _side(f"{_named(left, first, second)}: {prompt}", first, prompt),
            _side(f"{_named(right, second, first)}: {prompt}", second, prompt),
        )
        for prompt in shared
    ]


def _named(name: str, run: Run, other: Run) -> str:
    """Name one side by its run, and by what it was asked with that the other was not."""
    common = other.info.unusual_settings()
    own = [part for part in run.info.unusual_settings() if part not in common]
    return f"{name} ({'; '.join(own)})" if own else name


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
