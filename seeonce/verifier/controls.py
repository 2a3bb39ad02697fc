"""Controls: faults are put into a copy of the store, and verify-cache itself must object to each.

Owns which copies are made, what is run over them and what counts as an objection. A verifier that cannot
fail proves nothing; so the unchanged copy must pass, and a fault that is not objected to is a failure.
"""

import io
import json
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from cache.errors import EXIT_INTERRUPTED, CannotCheckError
from cache.home import Home
from cache.store import Store
from checkpoint import backend
from checkpoint.folder import CheckpointFolder
from seeonce.runs.selection import Selected
from seeonce.verifier.control_copy import (
    CopiedStore,
    changed_preprocessing,
    changed_weights,
    copy_again,
    copy_store,
    encoder_of,
)
from seeonce.verifier.faults import FAULTS, Fault, NotApplicableError
from seeonce.verifier.provenance import same_provenance
from seeonce.verifier.report import ControlResult, Level, Listener
from seeonce.verifier.sampling import Group

_MOST_ENTRIES = 4
_REFUSED = "encoder id"
_NEEDS_LIVE = "needs live encoding: --level embeddings or outputs"


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """How a run of the public command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run_verify_cache(arguments: Sequence[str], home: Home) -> CommandEnded:
    """Run ``verify-cache`` over another home, in this process, as it is run from the command line."""
    from seeonce.commands.main import run, verify_app

    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get("SEEONCE_HOME")
    os.environ["SEEONCE_HOME"] = str(home.path)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run(verify_app, list(arguments), error_code=2)
    finally:
        os.environ.pop("SEEONCE_HOME")
        os.environ.update({} if before is None else {"SEEONCE_HOME": before})
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return CommandEnded(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True, slots=True)
class Controls:
    """What controls came to; ``twin_problem`` says how the unchanged copy did not pass."""

    results: tuple[ControlResult, ...]
    twin_problem: str | None


def run_controls(
    store: Store,
    selected: Selected,
    sample: list[Group],
    level: Level,
    more: Sequence[str],
    seed: int,
    listener: Listener,
) -> Controls:
    """Put each fault into a copy of a few entries of ``sample`` and run ``verify-cache`` over it.

    ``more`` are arguments that change what counts as equal. All copies are removed.
    """
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="seeonce-controls-") as name:
        place = Path(name)
        pristine = copy_store(store, selected.manifest, _few_of(sample), place / "twin")
        bench = _Bench(selected, pristine, level, tuple(more), place)
        listener.begin(len(FAULTS) + len(_CHANGES) + 1, "controls", "control")
        problem = bench.twin_problem()
        listener.advance()
        results = []
        if problem is None:
            for number, fault in enumerate(FAULTS):
                results.append(bench.try_fault(fault, random.Random(f"{seed} {number}")))  # noqa: S311
                listener.advance()
            for title, change in _CHANGES:
                results.append(bench.try_checkpoint(title, change))
                listener.advance()
        return Controls(tuple(results), problem)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take SIGTERM as an interruption: by default the process would end and leave the copies behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _few_of(sample: list[Group]) -> list[Group]:
    """Return a few entries, two of one size among them if there are any."""
    by_size: dict[tuple[int, int, int], list[Group]] = {}
    for group in sample:
        by_size.setdefault(group[0].grid_thw, []).append(group)
    first = max(by_size.values(), key=len)[:2]
    rest = [group for group in sample if group not in first]
    return sorted([*first, *rest][:_MOST_ENTRIES], key=lambda group: group[0].index)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The copies and the command that controls share."""

    selected: Selected
    pristine: CopiedStore
    level: Level
    more: tuple[str, ...]
    place: Path

    def twin_problem(self) -> str | None:
        ended = self._run(self.pristine, self.selected.folder.path, self.level)
        if ended.code == 0:
            return None
        return f"the unchanged copy does not pass (exit code {ended.code}): {_why(ended)}"

    def try_fault(self, fault: Fault, rng: random.Random) -> ControlResult:
        """Put one fault into a fresh copy and see who objects."""
        if fault.level is not Level.bytes and self.level is Level.bytes:
            return _not_applied(fault.name, _NEEDS_LIVE)
        if fault.exact and not self._bit_for_bit():
            return _not_applied(fault.name, "a tolerance holds for these entries, and one bit is within it")
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            copy = copy_again(self.pristine, Path(name) / "home")
            try:
                where = fault.put(copy, rng)
            except (NotApplicableError, CannotCheckError) as error:
                return _not_applied(fault.name, str(error))
            level = Level.bytes if fault.level is Level.bytes else self.level
            objected = _objections(self._run(copy, self.selected.folder.path, level))
        caught = fault.level.value in objected and (fault.level is Level.bytes or "bytes" not in objected)
        words = f"{where}; objected: {', '.join(objected) or 'nobody'}"
        return ControlResult(fault.name, True, caught, objected, words)

    def try_checkpoint(self, title: str, change: Callable[[CheckpointFolder, Path], Path]) -> ControlResult:
        """Change the checkpoint under its name; then claim that the old features are the new encoder's."""
        if self.level is Level.bytes:
            return _not_applied(title, _NEEDS_LIVE)
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            try:
                checkpoint = change(self.selected.folder, Path(name) / "model")
            except CannotCheckError as error:
                return _not_applied(title, str(error))
            copy = copy_again(self.pristine, Path(name) / "home")
            refused = self._run(copy, checkpoint, self.level)
            copy.give_to(encoder_of(checkpoint, copy, self.selected))
            objected = _objections(self._run(copy, checkpoint, self.level))
        if refused.code not in (0, 1) and "not by the vision tower" in refused.err:
            objected = (_REFUSED, *objected)
        caught = _REFUSED in objected and "embeddings" in objected and "bytes" not in objected
        words = f"as it is and with forged keys; objected: {', '.join(objected) or 'nobody'}"
        return ControlResult(title, True, caught, objected, words)

    def _bit_for_bit(self) -> bool:
        here = backend.provenance()
        same = all(
            same_provenance(self.pristine.info(group).provenance, here) for group in self.pristine.groups
        )
        return same and "--tolerance" not in self.more

    def _run(self, copy: CopiedStore, checkpoint: Path, level: Level) -> CommandEnded:
        arguments = [self.selected.manifest.recording.id, "--level", level.value, "--json"]
        if level is not Level.bytes:
            arguments += ["--model", str(checkpoint), "--sample", "all", *self.more]
        return run_verify_cache(arguments, copy.home)


def _objections(ended: CommandEnded) -> tuple[str, ...]:
    """Return the names of the checks that found something to differ."""
    if ended.code != 1:
        return ()
    return tuple(check["name"] for check in json.loads(ended.out)["checks"] if not check["equal"])


def _why(ended: CommandEnded) -> str:
    if ended.code == 1:
        problems = [problem for check in json.loads(ended.out)["checks"] for problem in check["problems"]]
        return problems[0] if problems else "no reason given"
    lines = [line for line in ended.err.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _not_applied(name: str, why: str) -> ControlResult:
    return ControlResult(name, applied=False, caught=False, caught_by=(), words=why)


_CHANGES = (
    ("weights changed under the same name", changed_weights),
    ("other preprocessing under the same name", changed_preprocessing),
)
