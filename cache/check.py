"""The check of a whole store, which finds every problem and moves nothing, and the repair."""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, seal, unseal
from cache.base.errors import InputError, StoreError
from cache.base.files import Durability, Folder
from cache.entry import CHUNK_NAME, METADATA_NAME
from cache.gc import OnProgress
from cache.key import EntryKey
from cache.layout import INDEX, StoredEntry, entry_folder, stored_entries
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.quarantine import why_quarantined
from cache.stats import STORE_MAX, LimitReachedError, StoreLimit
from cache.store import Store

_SAVE_EVERY_S = 10.0
_GOOD_FOR_S = 30 * 24 * 3600  # disks rot: what was right longer ago is looked at again
_MAX_NOTE_BYTES = 64 << 20
# Reading, crc32c and BLAKE3 take turns within one entry, so entries side by side keep the disk busy.
_NUM_THREADS = min(4, os.cpu_count() or 1)
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


def parse_part(text: str, option: str) -> tuple[int, int]:
    """Read which of several parts is meant, "2/5", counted from 1.

    Raises:
        InputError: for anything else.
    """
    match = _SUBSET.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"{option} is {text!r}: expected a part and their number, as in {option} 2/5")
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
    """
    report = CheckReport(read_data=read_data)
    for key, recording_id in _check_manifests(store, report.problems).items():
        if in_subset(key, subset) and not store.exists(key):
            why = why_quarantined(store.path, key) or "there is no such entry, nor in quarantine"
            report.problems.append(Problem("missing", key.hex, f"named by {recording_id}; {why}"))
    entries = {entry.key: entry for entry in stored_entries(store.path) if in_subset(entry.key, subset)}
    note = "check-{}-of-{}.json".format(*subset) if read_data else ""
    try:
        with CheckProgress(store, note, _GOOD_FOR_S, restart=restart) as progress:
            left = [key for key, entry in entries.items() if not progress.has(entry)]
            report.num_resumed = len(entries) - len(left)
            num_all = sum(entries[key].num_bytes for key in left)
            for key, reason in checked(store, left, payload=read_data):
                problem = _problem(store, key, reason)
                progress.add(key, is_right=problem is None)
                report.problems += [problem] if problem else []
                report.num_entries += 1
                report.num_bytes += entries[key].num_bytes
                on_progress(report.num_bytes, num_all)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _problem(store: Store, key: EntryKey, reason: str | StoreError | None) -> Problem | None:
    if isinstance(reason, StoreError):  # the others may be readable
        return Problem("unreadable", key.hex, str(reason))
    if reason and store.exists(key):  # else it went since it was listed
        return Problem("damaged", key.hex, reason)
    return None


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


def checked(
    store: Store, keys: Iterable[EntryKey], *, payload: bool = True
) -> Iterator[tuple[EntryKey, str | StoreError | None]]:
    """Yield each key, in order, with what is wrong with its entry, or the error of a disk that refuses."""
    waiting = iter(sorted(keys, key=lambda key: key.raw))
    running: deque[tuple[EntryKey, Future[str | StoreError | None]]] = deque()

    def check(key: EntryKey) -> str | StoreError | None:
        try:
            return store.check(key, payload=payload)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(_NUM_THREADS, "seeonce-check") as threads:
        try:
            while True:
                for key in islice(waiting, 2 * _NUM_THREADS - len(running)):
                    running.append((key, threads.submit(check, key)))
                if not running:
                    return
                key, found = running.popleft()
                yield key, found.result()
        finally:
            threads.shutdown(cancel_futures=True)


class CheckProgress:
    """How far a check of bytes came, in a note of that name, so that an interrupted one goes on where it was.

    Every key up to ``after`` was looked at since ``since_s``, and is right but for the ``suspects``. Without
    a name, and in a store that is read-only, nothing is noted. Use it as a context manager.
    """

    def __init__(self, store: Store, note: str, good_for_s: float, *, restart: bool = False) -> None:
        """Take up the note of an interrupted check, unless it is older than ``good_for_s``."""
        self._store, self._note, self._saved_s = store, note, time.monotonic()
        self.since_s = now_s = time.time()
        self._after, self._suspects = "", set[str]()
        if not note or restart:
            return
        with suppress(OSError, StoreError, ValueError), Folder.open(store.path / INDEX) as folder:
            document = unseal(folder.read(note, _MAX_NOTE_BYTES), note)
            since_s, after = document.number("since_s"), EntryKey.from_hex(document.text("after"))
            suspects = set(document.texts("suspects"))
            if now_s - good_for_s < since_s <= now_s:
                self.since_s, self._after, self._suspects = since_s, after.hex, suspects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._save()
        elif self._note:
            with suppress(OSError), Folder.open(self._store.path / INDEX) as folder:
                folder.unlink(self._note)

    def has(self, entry: StoredEntry) -> bool:
        """Say whether an entry need not be looked at again: one that came or changed since then must be."""
        key = entry.key.hex
        if key > self._after or key in self._suspects:
            return False
        folder = entry_folder(self._store.path, entry.key)
        try:
            files_s = (os.lstat(f"{folder}/{name}").st_ctime for name in (CHUNK_NAME, METADATA_NAME))
            return max(entry.changed_s, *files_s) < self.since_s
        except OSError:
            return False

    def add(self, key: EntryKey, *, is_right: bool) -> None:
        """Take note of an entry that was looked at; keys come in order."""
        self._suspects.discard(key.hex)
        if not is_right:
            self._suspects.add(key.hex)
        self._after = max(self._after, key.hex)
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self._save()
            self._saved_s = time.monotonic()

    def _save(self) -> None:
        if not (self._note and self._after and self._store.writable):
            return
        document: dict[str, JsonValue] = {
            "after": self._after,
            SEAL_FIELD: UNSEALED,
            "since_s": self.since_s,
            "suspects": sorted(self._suspects),
        }
        with suppress(OSError), Folder.open(self._store.path / INDEX) as folder:
            folder.replace(self._note, seal(document), Durability.none)


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
        lacking = [frame for frame in manifest.frames if not store.exists(frame.key)]
        missing = {frame.key: frame for frame in lacking}
        say(f"{manifest.recording.id}: {len(lacking)} of {len(manifest.frames)} frames have no entry")
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
        failures += [(frame, f"{STORE_MAX} allows no more") for frame in missing.values()]
        report.remaining += [
            Problem("missing", frame.key.hex, f"frame {frame.index} of {manifest.recording.id}: {reason}")
            for frame, reason in failures
        ]
