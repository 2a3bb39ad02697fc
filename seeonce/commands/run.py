"""``seeonce run``: an experiment file, the runs that it lacks, and a summary."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PARTLY, NotEncodedError, SeeonceError
from cache.base.home import Home
from cache.base.text import visible
from precompute.pass_one import EncodeOptions, encode
from seeonce.commands.terminal import Terminal
from seeonce.runs.describe import Session, describe
from seeonce.runs.experiment import read_experiment
from seeonce.runs.find import Run, finished_run, load_run, running_run
from seeonce.runs.known import AnswerCache
from seeonce.runs.options import DescribeOptions
from seeonce.runs.plan import plan
from seeonce.runs.recording import LATEST, newest_recording, select
from seeonce.runs.run import RunInfo
from seeonce.runs.table import counted
from seeonce.verifier.canary import sound_limits

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the matrix.

    ``was_there`` tells that an earlier call made it, ``is_elsewhere`` that another process is at it now,
    ``error`` why there is none.
    """

    run: Run
    was_there: bool = False
    is_elsewhere: bool = False
    interrupted: bool = False
    error: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` says of it."""
        return {
            "run": self.run.as_dict(),
            "was_there": self.was_there,
            "is_elsewhere": self.is_elsewhere,
            "interrupted": self.interrupted,
            "error": self.error,
        }


def run_command(
    experiment: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment file, TOML.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all of it again, known answers too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """Run what an experiment file asks for and is not there yet.

    Recordings that are not encoded are encoded first.

    Example: seeonce run experiment.toml
    """
    home = Home.locate()
    options = list(_pinned(home, read_experiment(experiment).cells()))
    done: list[Cell] = []
    with AnswerCache(home) as known:
        session = Session(home, known)  # a model is loaded once for all of its runs that follow one another
        for number, cell in enumerate(options, 1):
            try:
                done.append(_run(session, replace(cell, fresh=fresh)))
            except SeeonceError as error:  # costs no other run
                if len(options) == 1:
                    raise
                done.append(_failed(cell, error))
            typer.echo(_line(done[-1], f"[{number}/{len(options)}]"), err=True)
            if done[-1].interrupted:
                break
    typer.echo(json.dumps([cell.as_dict() for cell in done]) if as_json else _summary(done, len(options)))
    raise typer.Exit(_exit_code(done))


def _pinned(home: Home, cells: Iterable[DescribeOptions]) -> Iterator[DescribeOptions]:
    """Say which recording ``latest`` is, once: one that comes meanwhile is not asked about in its place."""
    newest: str | None = None
    for options in cells:
        if options.recording == LATEST:
            newest = newest or newest_recording(home)
        yield replace(options, recording=newest) if options.recording == LATEST and newest else options


def _run(session: Session, options: DescribeOptions) -> Cell:
    try:
        return _run_or_found(session, options)
    except KeyboardInterrupt:  # before the run began, or as it was closed
        return _not_begun(options, "interrupted")


def _not_begun(options: DescribeOptions, state: str, error: str | None = None) -> Cell:
    run = Run(RunInfo("", options.recording, name=options.name), state=state)
    return Cell(run, interrupted=state == "interrupted", error=error)


def _failed(options: DescribeOptions, error: SeeonceError) -> Cell:
    return _not_begun(options, "failed", " ".join(str(error).split()))


def _run_or_found(session: Session, options: DescribeOptions) -> Cell:
    home = session.home
    with Terminal() as terminal:
        if not _encoded(home, options, terminal.say):
            return _not_begun(options, "interrupted")
        selected = select(home, options.recording, options.model, terminal.say)
        plan_id = plan(home, selected, options).id
        if not options.fresh:
            there = finished_run(home, options.name, plan_id)
            if there is not None:
                return Cell(there, was_there=True)
            elsewhere = running_run(home, options.name, plan_id)
            if elsewhere is not None:
                return Cell(elsewhere, is_elsewhere=True)
        limits = sound_limits(home, options, terminal.say)
        options = replace(options, limits=limits)
        ended = describe(session, options, terminal)
    return Cell(load_run(ended.path, lambda _: None), interrupted=ended.interrupted)


def _encoded(home: Home, options: DescribeOptions, say: Say) -> bool:
    """Encode a recording that is not; tell whether it is now."""
    try:
        select(home, options.recording, options.model, say)
    except NotEncodedError:
        with Terminal() as terminal:
            return not encode(home, EncodeOptions(options.recording, options.model), terminal).interrupted
    return True


def _line(cell: Cell, number: str) -> str:
    run, name = cell.run, " ".join(visible(cell.run.info.name).split())
    if cell.error is not None:
        return f"error: {name}: {cell.error}"
    id_, seconds, answers = run.info.id, run.info.totals.seconds, counted(len(run.answers), "answer")
    if not id_:
        return f"{number} {name}: interrupted before it began"
    if cell.is_elsewhere:
        return f"{number} {name}: goes on in another process ({id_})"
    errors = f", {counted(run.num_errors, 'error')}" if run.num_errors else ""
    if cell.was_there:
        return f"{number} {name}: there already, {answers}{errors} ({id_})"
    num_known = run.info.totals.num_known
    known = f", {num_known} known from earlier runs" if num_known else ""
    how = f"in {seconds:.1f} s{known}{errors}; {run.state}"
    return f"{number} {name}: {answers} {how} ({id_})"


def _summary(done: list[Cell], num_cells: int) -> str:
    fresh = [cell.run for cell in done if cell.run.info.id and not (cell.was_there or cell.is_elsewhere)]
    left = num_cells - sum(cell.run.state == "done" for cell in done)
    seconds = sum(run.info.totals.seconds for run in fresh)
    lines = [
        f"{sum(cell.was_there for cell in done)} of {num_cells} runs were there, {len(fresh)} made: "
        f"{counted(sum(len(run.answers) for run in fresh), 'answer')}, "
        f"{sum(run.info.totals.num_known for run in fresh)} of them known, "
        f"{counted(sum(run.num_errors for run in fresh), 'error')}, {seconds:.1f} s."
    ]
    if left:
        lines.append(f"{left} {'run is' if left == 1 else 'runs are'} left: run the same command to go on.")
    else:
        lines.append("Side by side: seeonce report " + " ".join(cell.run.info.id for cell in done))
    return "\n".join(lines)


def _exit_code(done: list[Cell]) -> int:
    if any(cell.interrupted for cell in done):
        return EXIT_INTERRUPTED
    if all(cell.error is not None for cell in done):
        return EXIT_ERROR
    partly = (cell.error is not None or cell.is_elsewhere or cell.run.num_errors for cell in done)
    return EXIT_PARTLY if any(partly) else 0
