"""The check of a whole store, which finds every problem and moves nothing, and the repair."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, seal, unseal
from cache.base.errors import InputError, StoreError
from cache.base.files import Durability, Folder
from cache.gc import OnProgress
from cache.key import EntryKey
from cache.layout import INDEX, StoredEntry, stored_entries
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.quarantine import why_quarantined
from cache.stats import VARIABLE, LimitReachedError, StoreLimit
from cache.store import Store

_SAVE_EVERY_S = 10.0
_GOOD_FOR_S = 30 * 24 * 3600  # disks rot: what was right longer ago is looked at again
_MAX_STATE_BYTES = 64 << 20
_SUBSET = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong. ``kind`` is ``damaged``, ``unreadable``, ``missing`` or ``manifest``.

    ``what`` is a key or a path. An entry is unreadable when the disk refuses for a reason of its own.
    """

    kind: str
    what: str
    reason: str


@dataclass(slots=True)
class CheckReport:
    """What a check found: ``num_entries`` were checked now, ``num_resumed`` before an interruption."""

    num_entries: int = 0
    num_resumed: int = 0
    num_bytes: int = 0
    read_data: bool = False
    problems: list[Problem] = field(default_factory=list)
    interrupted: bool = False


def parse_subset(text: str) -> tuple[int, int]:
    """Read which of several parts of a store is meant, "2/5", counted from 1.

    Raises:
        InputError: for anything else.
    """
    match = _SUBSET.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--subset is {text!r}: expected a part and their number, as in --subset 2/5")
    return int(match[1]), int(match[2])


def in_subset(key: EntryKey, subset: tuple[int, int]) -> bool:
    """Say whether an entry belongs to a part: keys are digests, so parts are of one size."""
    number, num_parts = subset
    return int.from_bytes(key.raw[:8], "big") % num_parts == number - 1


def check_store(
    store: Store,
    *,
    read_data: bool = False,
    subset: tuple[int, int] = (1, 1),
    restart: bool = False,
    on_progress: OnProgress = lambda _done, _all: None,
) -> CheckReport:
    """Check manifests, metadata and lengths, and with ``read_data`` every byte of every entry.

    A check of bytes that was interrupted goes on where it was, unless ``restart`` is set.

    Raises:
        StoreError: the disk refuses.
    """
    report = CheckReport(read_data=read_data)
    for key, recording_id in _check_manifests(store, report.problems).items():
        if in_subset(key, subset) and not store.exists(key):
            why = why_quarantined(store.path, key) or "there is no such entry, nor in quarantine"
            report.problems.append(Problem("missing", key.hex, f"named by {recording_id}; {why}"))
    entries = [entry for entry in stored_entries(store.path) if in_subset(entry.key, subset)]
    name = "check-{}-of-{}.json".format(*subset)
    state = _load_state(store, name) if read_data and not restart else _State(time.time())
    left = sorted((entry for entry in entries if not state.is_done(entry)), key=lambda entry: entry.key.raw)
    report.num_resumed = len(entries) - len(left)
    saved_s = time.monotonic()
    try:
        for _ in _check_entries(store, left, report, state, on_progress):
            if read_data and time.monotonic() - saved_s > _SAVE_EVERY_S:
                _save_state(store, name, state)
                saved_s = time.monotonic()
    except BaseException as error:
        if read_data:
            _save_state(store, name, state)
        if not isinstance(error, KeyboardInterrupt):
            raise
        report.interrupted = True
    else:
        if read_data:
            with suppress(OSError), Folder.open(store.path / INDEX) as folder:
                folder.unlink(name)
    return report


def _check_manifests(store: Store, problems: list[Problem]) -> dict[EntryKey, str]:
    """Find what is wrong with manifests; return a recording that names each key."""
    named: dict[EntryKey, str] = {}
    lines: list[str] = []
    for ref in list_manifests(store.home, lines.append):
        path = str(ref.path.relative_to(store.path))
        try:
            manifest = read_manifest(ref.path)
        except StoreError as error:
            if ref.path.exists():  # else it was forgotten meanwhile
                problems.append(Problem("manifest", path, str(error)))
            continue
        problems += [Problem("manifest", path, line) for line in manifest.problems()]
        named.update((frame.key, ref.recording.id) for frame in manifest.frames)
    problems += [Problem("manifest", "recordings", line) for line in lines]
    return named


@dataclass(slots=True)
class _State:
    """How far a check came: every key up to ``after`` was looked at since ``since_s``, and is right but for
    the ``suspects``.
    """

    since_s: float
    after: str = ""
    suspects: set[str] = field(default_factory=set)

    def is_done(self, entry: StoredEntry) -> bool:
        """Say whether an entry need not be looked at again: one that came since then must be."""
        key = entry.key.hex
        return key <= self.after and entry.changed_s < self.since_s and key not in self.suspects


def _check_entries(
    store: Store, entries: list[StoredEntry], report: CheckReport, state: _State, on_progress: OnProgress
) -> Iterator[None]:
    num_all = sum(entry.num_bytes for entry in entries)
    for entry in entries:
        key, problem = entry.key.hex, None
        try:
            reason = store.check(entry.key, payload=report.read_data)
            if reason and store.exists(entry.key):  # else it went since it was listed
                problem = Problem("damaged", key, reason)
        except StoreError as error:  # the others may be readable
            problem = Problem("unreadable", key, str(error))
        state.suspects.discard(key)
        if problem:
            report.problems.append(problem)
            state.suspects.add(key)
        state.after = max(state.after, key)
        report.num_entries += 1
        report.num_bytes += entry.num_bytes
        on_progress(report.num_bytes, num_all)
        yield


def _load_state(store: Store, name: str) -> _State:
    """Return how far the last check came; the beginning when nothing is known, or too old."""
    now_s = time.time()
    with suppress(OSError, StoreError, ValueError), Folder.open(store.path / INDEX) as folder:
        document = unseal(folder.read(name, _MAX_STATE_BYTES), name)
        since_s, after = document.number("since_s"), EntryKey.from_hex(document.text("after"))
        if now_s - _GOOD_FOR_S < since_s <= now_s:
            return _State(since_s, after.hex, set(document.texts("suspects")))
    return _State(now_s)


def _save_state(store: Store, name: str, state: _State) -> None:
    """Remember how far a check came; best effort, and not in a store that is read-only."""
    if not store.writable or not state.after:
        return
    document: dict[str, JsonValue] = {
        "after": state.after,
        SEAL_FIELD: UNSEALED,
        "since_s": state.since_s,
        "suspects": sorted(state.suspects),
    }
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.replace(name, seal(document), Durability.none)


EncodeAgain = Callable[[Manifest, list[FrameEntry], StoreLimit], Iterator[tuple[FrameEntry, str | None]]]
"""Encodes frames of a manifest into the same keys: yields each when its entry is written, or with the reason
why it cannot be. Raises ``LimitReachedError`` at the limit of the store."""


@dataclass(slots=True)
class RepairReport:
    """What was done: entries moved to quarantine, entries encoded again, and what is left to the user."""

    num_quarantined: int = 0
    num_encoded: int = 0
    remaining: list[Problem] = field(default_factory=list)
    interrupted: bool = False


def repair(
    store: Store,
    encode_again: EncodeAgain,
    *,
    read_data: bool = False,
    on_progress: OnProgress = lambda _done, _all: None,
    say: Callable[[str], None] = lambda _: None,
) -> RepairReport:
    """Put every damaged entry into quarantine, and encode again what manifests name and nobody has.

    At the limit of the store it stops: what is missing then remains.

    Raises:
        InputError: the limit is no size.
        StoreError: the store is read-only, or the disk refuses.
    """
    if not store.writable:
        raise StoreError(f"the store {store.path} is read-only: nothing can be repaired in it")
    report, limit = RepairReport(interrupted=True), StoreLimit.of(store)
    with suppress(KeyboardInterrupt), held_lease(store, "store repair"):
        _quarantine_damaged(store, report, read_data, on_progress)
        _encode_missing(store, encode_again, report, limit, say)
        report.interrupted = False
    return report


def _quarantine_damaged(store: Store, report: RepairReport, read_data: bool, on_progress: OnProgress) -> None:
    found = check_store(store, read_data=read_data, restart=True, on_progress=on_progress)
    if found.interrupted:
        raise KeyboardInterrupt
    for problem in found.problems:
        if problem.kind == "damaged":
            report.num_quarantined += store.quarantine_damaged(EntryKey.from_hex(problem.what))
        elif problem.kind in ("manifest", "unreadable"):
            report.remaining.append(problem)


def _encode_missing(
    store: Store,
    encode_again: EncodeAgain,
    report: RepairReport,
    limit: StoreLimit,
    say: Callable[[str], None],
) -> None:
    full = False
    for ref in list_manifests(store.home, lambda _: None):  # the check has named what cannot be read
        if all(map(store.exists, ref.keys)):
            continue
        try:
            manifest = read_manifest(ref.path)
        except StoreError:  # forgotten meanwhile, or named by the check
            continue
        missing = {frame.key: frame for frame in manifest.frames if not store.exists(frame.key)}
        say(f"{manifest.recording.id}: {len(missing)} of {len(manifest.frames)} frames have no entry")
        failures: list[tuple[FrameEntry, str]] = []
        try:
            for frame, reason in () if full else encode_again(manifest, list(missing.values()), limit):
                del missing[frame.key]
                if reason is None:
                    report.num_encoded += 1
                else:
                    failures.append((frame, reason))
        except LimitReachedError as error:
            full = True
            say(f"stopped: {error}")
        failures += [(frame, f"{VARIABLE} allows no more") for frame in missing.values()]
        report.remaining += [
            Problem("missing", frame.key.hex, f"frame {frame.index} of {manifest.recording.id}: {reason}")
            for frame, reason in failures
        ]
