"""verify-cache: a recording is checked, and by controls the check itself. The store is only read.

Controls are faults in copies of the store, and verify-cache must object to each: a verifier that cannot fail
proves nothing. So the unchanged copy must pass, and a fault that is not objected to is a failure.
"""

import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cache.base.errors import CannotCheckError, NotEncodedError, SeeonceError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.leases import held_lease
from cache.store import Store
from checkpoint import backend
from checkpoint.config import Checkpoint
from seeonce.runs.recording import Selected, select
from seeonce.verifier.differences import same_provenance
from seeonce.verifier.faults import (
    CHECKPOINT_CHANGES,
    FAULTS,
    CopiedStore,
    Fault,
    copy_again,
    copy_store,
    encoder_of,
)
from seeonce.verifier.levels import VerifyOptions, check_recording, sampled
from seeonce.verifier.report import ControlResult, Level, Report
from seeonce.verifier.sample import Group, strata

_MAX_ENTRIES = 4
_REFUSED = "encoder id"
_NEEDS_LIVE = "needs live encoding: --level embeddings or outputs"


def verify(home: Home, options: VerifyOptions, listener: Listener) -> Report:
    """Check a recording at a level, and the check itself by controls. What cannot be checked is reported.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not encoded, or not by this model's vision tower.
    """
    with held_lease(Store.open(home, create=False), f"verify-cache {options.recording}"):
        report = check_recording(home, options, listener)
        return _with_controls(report, home, options, listener) if options.controls else report


def _with_controls(report: Report, home: Home, options: VerifyOptions, listener: Listener) -> Report:
    """Put each fault into a copy of a few entries, check it by the same options, and report who objects.

    All copies are removed, after an interruption or SIGTERM too.
    """
    if not report.equal:
        return replace(
            report, controls_problem="not run: the store itself differs, so no copy of it can pass"
        )
    selected = select(home, report.recording, options.model, listener.say, report.encoder_id)
    groups = _few_of(sampled(selected.manifest, options))
    options = replace(
        options, recording=report.recording, sample="all", controls=False, against=None, sample_only=False
    )
    with _interrupted_by_sigterm(), tempfile.TemporaryDirectory(prefix="seeonce-controls-") as name:
        copy = copy_store(Store.open(home, create=False), selected.manifest, groups, Path(name) / "unchanged")
        problem = _unchanged_problem(copy, selected, options)
        if problem is not None:
            return replace(report, controls_problem=problem)
        results = list[ControlResult]()

        def add(result: ControlResult) -> None:
            results.append(result)
            listener.show("controls", "control", len(results), len(FAULTS) + len(CHECKPOINT_CHANGES))

        for number, fault in enumerate(FAULTS):
            rng = random.Random(f"{options.seed} {number}")  # noqa: S311
            add(_try_fault(fault, rng, copy, selected, options))
        for title, change in CHECKPOINT_CHANGES:
            add(_try_checkpoint(title, change, copy, selected, options))
    return replace(report, controls=tuple(results))


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
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
    first = max(strata(sample), key=len)[:2]
    rest = [group for group in sample if group not in first]
    return sorted([*first, *rest][:_MAX_ENTRIES], key=lambda group: group[0].index)


def _check(copy: CopiedStore, checkpoint: Path, options: VerifyOptions) -> Report:
    model = None if options.level is Level.bytes else str(checkpoint)
    return check_recording(copy.home, replace(options, model=model), Listener())


def _objections(copy: CopiedStore, checkpoint: Path, options: VerifyOptions) -> tuple[str, ...]:
    """Return the names of the checks that found something to differ, or that the encoder was refused."""
    try:
        report = _check(copy, checkpoint, options)
    except NotEncodedError as error:
        return (_REFUSED,) if "not by the vision tower" in str(error) else ()
    except SeeonceError:
        return ()
    return tuple(check.name for check in report.checks if not check.equal)


def _unchanged_problem(copy: CopiedStore, selected: Selected, options: VerifyOptions) -> str | None:
    """Say how the unchanged copy does not pass, ``None`` if it does."""
    try:
        report = _check(copy, selected.checkpoint.path, options)
    except SeeonceError as error:
        code, why = 2, f"error: {' '.join(str(error).split())}"  # as verify-cache ends then
    else:
        code = report.exit_code
        found = [line for check in report.checks for line in (*check.problems, *check.unchecked)]
        why = found[0] if found else "no reason given"
    return None if code == 0 else f"the unchanged copy does not pass (exit code {code}): {why}"


def _try_fault(
    fault: Fault, rng: random.Random, unchanged: CopiedStore, selected: Selected, options: VerifyOptions
) -> ControlResult:
    if fault.level is Level.bytes:
        options = replace(options, level=Level.bytes)
    elif options.level is Level.bytes:
        return _not_applied(fault.name, _NEEDS_LIVE)
    if fault.exact and not _is_bit_for_bit(unchanged, options):
        return _not_applied(fault.name, "a tolerance holds for these entries, and one bit is within it")
    with tempfile.TemporaryDirectory(dir=unchanged.home.path.parent) as name:
        copy = copy_again(unchanged, Path(name) / "home")
        try:
            where = fault.put(copy, rng)
        except CannotCheckError as error:
            return _not_applied(fault.name, str(error))
        objected = _objections(copy, selected.checkpoint.path, options)
    caught = fault.level.value in objected and (fault.level is Level.bytes or "bytes" not in objected)
    return ControlResult(fault.name, True, caught, objected, f"{where}; {_words(objected)}")


def _is_bit_for_bit(copy: CopiedStore, options: VerifyOptions) -> bool:
    here = backend.provenance()
    same = all(same_provenance(copy.info(group).provenance, here) for group in copy.groups)
    return same and options.tolerance is None


def _try_checkpoint(
    title: str,
    change: Callable[[Checkpoint, Path], Path],
    unchanged: CopiedStore,
    selected: Selected,
    options: VerifyOptions,
) -> ControlResult:
    """Change the checkpoint under its name; then claim that the old features are the new encoder's."""
    if options.level is Level.bytes:
        return _not_applied(title, _NEEDS_LIVE)
    with tempfile.TemporaryDirectory(dir=unchanged.home.path.parent) as name:
        try:
            checkpoint = change(selected.checkpoint, Path(name) / "model")
        except CannotCheckError as error:
            return _not_applied(title, str(error))
        copy = copy_again(unchanged, Path(name) / "home")
        refused = _REFUSED in _objections(copy, checkpoint, options)
        copy.give_to(encoder_of(checkpoint, copy))
        objected = _objections(copy, checkpoint, options)
    if refused:
        objected = (_REFUSED, *objected)
    caught = refused and "embeddings" in objected and "bytes" not in objected
    return ControlResult(title, True, caught, objected, f"as it is and with forged keys; {_words(objected)}")


def _words(objected: tuple[str, ...]) -> str:
    return f"objected: {', '.join(objected) or 'nobody'}"


def _not_applied(name: str, why: str) -> ControlResult:
    return ControlResult(name, applied=False, caught=False, caught_by=(), words=why)
