"""``seeonce run``: an experiment file, the runs that it lacks, and a summary."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PARTLY, NotEncodedError, SeeonceError
from cache.base.home import Home
from cache.base.text import counted, visible
from cache.bucket import BucketStore
from precompute.options import EncodeOptions
from precompute.pass_one import encode
from seeonce.commands.arguments import (
    AsJson,
    ByEngine,
    FromBucket,
    GpusPerWorker,
    NumWorkers,
    PrefixCacheSize,
    opened_session,
)
from seeonce.commands.terminal import Terminal
from seeonce.runs.describe import Session
from seeonce.runs.experiment import read_experiment
from seeonce.runs.find import finished_run, load_run, running_run
from seeonce.runs.options import DescribeOptions
from seeonce.runs.plan import plan_run
from seeonce.runs.recording import LATEST, Selected, find_in_bucket, newest_recording, select
from seeonce.runs.run import Run, RunInfo
from seeonce.verifier.canary import describe_soundly


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """One run of the matrix.

    ``was_there`` tells that an earlier call made it, ``is_elsewhere`` that another process is making it now,
    ``error`` why it failed.
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
    prefix_cache: PrefixCacheSize = None,
    source: FromBucket = None,
    engine: ByEngine = None,
    workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = 0,
    as_json: AsJson = False,
) -> None:
    """Run what an experiment file asks for and is not there yet.

    Recordings that are not encoded are encoded first.

    Example: seeonce run experiment.toml
    """
    done: list[RunOutcome] = []
    # A model is loaded once for all of its runs that follow one another.
    with opened_session(None, prefix_cache, source, engine, workers, gpus_per_worker) as session:
        wanted = read_experiment(experiment).runs()
        options = list(_pinned(session.home, wanted, session.bucket))
        for number, each in enumerate(options, 1):
            try:
                done.append(_run(session, replace(each, fresh=fresh)))
            except SeeonceError as error:  # costs no other run
                if len(options) == 1:
                    raise
                done.append(_not_begun(each, "failed", " ".join(str(error).split())))
            typer.echo(_line(done[-1], f"[{number}/{len(options)}]"), err=True)
            if done[-1].interrupted:
                break
    typer.echo(json.dumps([each.as_dict() for each in done]) if as_json else _summary(done, len(options)))
    raise typer.Exit(_exit_code(done))


def _pinned(
    home: Home, wanted: Iterable[DescribeOptions], bucket: BucketStore | None
) -> Iterator[DescribeOptions]:
    """Say which recording ``latest`` is, once: one that comes while it runs does not take its place."""
    newest: str | None = None
    for options in wanted:
        if options.recording == LATEST:
            newest = newest or (
                newest_recording(home) if bucket is None else find_in_bucket(bucket, LATEST)[0].recording.id
            )
        yield replace(options, recording=newest) if options.recording == LATEST and newest else options


def _run(session: Session, options: DescribeOptions) -> RunOutcome:
    try:
        return _run_or_found(session, options)
    except KeyboardInterrupt:  # before the run began, or as it was closed
        return _not_begun(options, "interrupted")


def _not_begun(options: DescribeOptions, state: str, error: str | None = None) -> RunOutcome:
    run = Run(RunInfo("", options.recording, name=options.name), state=state)
    return RunOutcome(run, interrupted=state == "interrupted", error=error)


def _run_or_found(session: Session, options: DescribeOptions) -> RunOutcome:
    home = session.home
    with Terminal() as terminal:
        if session.bucket is None:
            selected = _encoded(home, options, terminal)
        else:
            selected = select(home, options.recording, options.model, terminal.say, bucket=session.bucket)
        if selected is None:
            return _not_begun(options, "interrupted")
        plan = plan_run(home, selected, options)
        if not options.fresh:
            plan_id = plan.id
            there = finished_run(home, options.name, plan_id)
            if there is not None:
                return RunOutcome(there, was_there=True)
            elsewhere = running_run(home, options.name, plan_id)
            if elsewhere is not None:
                return RunOutcome(elsewhere, is_elsewhere=True)
        ended = describe_soundly(session, selected, options, terminal, plan)
    return RunOutcome(load_run(ended.path), interrupted=ended.interrupted)


def _encoded(home: Home, options: DescribeOptions, terminal: Terminal) -> Selected | None:
    """Select a recording, encoded first if it is not; ``None`` when that was interrupted."""
    try:
        return select(home, options.recording, options.model, terminal.say)
    except NotEncodedError:
        if encode(home, EncodeOptions(options.recording, options.model), terminal).interrupted:
            return None
    return select(home, options.recording, options.model, terminal.say)


def _line(outcome: RunOutcome, number: str) -> str:
    run, name = outcome.run, " ".join(visible(outcome.run.info.name).split())
    if outcome.error is not None:
        return f"error: {name}: {outcome.error}"
    id_, seconds, answers = run.info.id, run.info.totals.seconds, counted(len(run.answers), "answer")
    if not id_:
        return f"{number} {name}: interrupted before it began"
    if outcome.is_elsewhere:
        return f"{number} {name}: goes on in another process ({id_})"
    errors = f", {counted(run.num_errors, 'error')}" if run.num_errors else ""
    if outcome.was_there:
        return f"{number} {name}: there already, {answers}{errors} ({id_})"
    num_known = run.info.totals.num_known
    known = f", {num_known} known from earlier runs" if num_known else ""
    how = f"in {seconds:.1f} s{known}{errors}; {run.state}"
    return f"{number} {name}: {answers} {how} ({id_})"


def _summary(done: list[RunOutcome], num_runs: int) -> str:
    fresh = [each.run for each in done if each.run.info.id and not (each.was_there or each.is_elsewhere)]
    left = num_runs - sum(each.run.state == "done" for each in done)
    seconds = sum(run.info.totals.seconds for run in fresh)
    lines = [
        f"{sum(each.was_there for each in done)} of {num_runs} runs were there, {len(fresh)} made: "
        f"{counted(sum(len(run.answers) for run in fresh), 'answer')}, "
        f"{sum(run.info.totals.num_known for run in fresh)} of them known, "
        f"{counted(sum(run.num_errors for run in fresh), 'error')}, {seconds:.1f} s."
    ]
    if left:
        lines.append(f"{left} {'run is' if left == 1 else 'runs are'} left: run the same command to go on.")
    else:
        lines.append("Side by side: seeonce report " + " ".join(each.run.info.id for each in done))
    return "\n".join(lines)


def _exit_code(done: list[RunOutcome]) -> int:
    if any(each.interrupted for each in done):
        return EXIT_INTERRUPTED
    if all(each.error is not None for each in done):
        return EXIT_ERROR
    partly = (each.error is not None or each.is_elsewhere or each.run.num_errors for each in done)
    return EXIT_PARTLY if any(partly) else 0
