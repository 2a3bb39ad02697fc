"""The check of a whole store: ``seeonce store check``. Finds every problem and moves nothing."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, seal, unseal
from cache.base.errors import InputError, StoreError
from cache.base.files import Durability, Folder
from cache.key import EntryKey
from cache.layout import INDEX, StoredEntry, stored_entries
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.quarantine import in_words, quarantined_entries
from cache.stats import VARIABLE, LimitReachedError, StoreLimit, max_store_bytes
from cache.store import Store

_MAX_BYTES = 64 << 20
_GOOD_FOR_S = 30 * 24 * 3600  # disks rot: what was right longer ago is looked at again


@dataclass(frozen=True, slots=True)
class CheckState:
    """Every key up to ``after`` was looked at since ``since_s``, and is right but for the ``suspects``."""

    since_s: float
    after: EntryKey | None = None
    suspects: frozenset[EntryKey] = field(default_factory=frozenset)

    def is_done(self, entry: StoredEntry) -> bool:
        """Say whether an entry need not be looked at again: one that came since then must be."""
        if self.after is None or entry.changed_s >= self.since_s:
            return False
        return entry.key.raw <= self.after.raw and entry.key not in self.suspects


def load_state(store: Store, name: str) -> CheckState:
    """Return how far the last check of this part came; the beginning when nothing is known, or too old."""
    now_s = time.time()
    with suppress(OSError, StoreError, ValueError), Folder.open(store.path / INDEX) as folder:
        document = unseal(folder.read(name, _MAX_BYTES), name)
        since_s, suspects = document.number("since_s"), document.raw("suspects")
        if isinstance(suspects, list) and now_s - _GOOD_FOR_S < since_s <= now_s:
            keys = frozenset(EntryKey.from_hex(str(suspect)) for suspect in suspects)
            return CheckState(since_s, EntryKey.from_hex(document.text("after")), keys)
    return CheckState(now_s)


def save_state(store: Store, name: str, state: CheckState) -> None:
    """Remember how far a check came; best effort, and not in a store that is read-only."""
    if not store.writable or state.after is None:
        return
    suspects = sorted(key.hex for key in state.suspects)
    document: dict[str, JsonValue] = {
        "after": state.after.hex,
        SEAL_FIELD: UNSEALED,
        "since_s": state.since_s,
        "suspects": suspects,
    }
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.replace(name, seal(document), Durability.none)


def forget_state(store: Store, name: str) -> None:
    """Let the next check begin anew."""
    with suppress(OSError), Folder.open(store.path / INDEX) as folder:
        folder.unlink(name)


_SAVE_EVERY_S = 10.0
_SUBSET = re.compile(r"(\d{1,9})/(\d{1,9})")

OnProgress = Callable[[int, int], None]
"""Is told how many bytes are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Subset:
    """One of several equal parts of a store, the same at every call: ``number`` counts from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read "2/5".

        Raises:
            InputError: for anything else.
        """
        match = _SUBSET.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--subset is {text!r}: expected a part and their number, as in --subset 2/5")
        return cls(int(match[1]), int(match[2]))

    def holds(self, key: EntryKey) -> bool:
        """Say whether an entry belongs to this part: keys are digests, so parts are of one size."""
        return int.from_bytes(key.raw[:8], "big") % self.of == self.number - 1


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong. ``kind`` is ``damaged``, ``unreadable``, ``missing`` or ``manifest``.

    ``what`` is a key or a path. An entry is unreadable when the disk refuses for a reason of its own.
    """

    kind: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found: ``num_entries`` were checked now, ``num_resumed`` before an interruption."""

    num_entries: int
    num_resumed: int
    num_bytes: int
    read_data: bool
    problems: tuple[Problem, ...]
    interrupted: bool


def check_store(
    store: Store,
    *,
    read_data: bool = False,
    subset: Subset | None = None,
    restart: bool = False,
    on_progress: OnProgress = lambda _done, _all: None,
) -> CheckReport:
    """Check manifests, metadata and lengths, and with ``read_data`` every byte of every entry.

    A check of bytes that was interrupted goes on where it was, unless ``restart`` is set.

    Raises:
        StoreError: the disk refuses.
    """
    subset = subset or Subset()
    problems, named = check_manifests(store)
    named = {key: id_ for key, id_ in named.items() if subset.holds(key)}
    problems += missing_entries(store, named)
    entries = _Entries(store, read_data, f"check-{subset.number}-of-{subset.of}.json")
    try:
        entries.check(subset, restart, on_progress)
    except KeyboardInterrupt:
        entries.interrupted = True
    return CheckReport(
        num_entries=entries.num_done,
        num_resumed=entries.num_resumed,
        num_bytes=entries.num_bytes,
        read_data=read_data,
        problems=(*problems, *entries.problems),
        interrupted=entries.interrupted,
    )


def check_manifests(store: Store) -> tuple[list[Problem], dict[EntryKey, str]]:
    """Return what is wrong with manifests, and a recording that names each key."""
    lines: list[str] = []
    problems: list[Problem] = []
    named: dict[EntryKey, str] = {}
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
    return [Problem("manifest", "recordings", line) for line in lines] + problems, named


def missing_entries(store: Store, named: dict[EntryKey, str]) -> list[Problem]:
    """Name the entries that a manifest wants and nobody has; why some lie in quarantine is known."""
    gone = [key for key in named if not store.is_there(key)]
    away = quarantined_entries(store.path) if gone else {}
    return [
        Problem(
            "missing",
            key.hex,
            f"named by {named[key]}; "
            + (in_words(away[key][-1]) if key in away else "there is no such entry, nor in quarantine"),
        )
        for key in gone
    ]


class _Entries:
    """Checks entries in the order of their keys, and remembers how far it came."""

    def __init__(self, store: Store, read_data: bool, state_name: str) -> None:
        self._store, self._read_data, self._state_name = store, read_data, state_name
        self.problems: list[Problem] = []
        self._suspects: set[EntryKey] = set()
        self._since_s = 0.0
        self.num_done = self.num_resumed = self.num_bytes = 0
        self.interrupted = False

    def check(self, subset: Subset, restart: bool, on_progress: OnProgress) -> None:
        state = CheckState(time.time())
        if self._read_data and not restart:
            state = load_state(self._store, self._state_name)
        self._suspects, self._since_s = set(state.suspects), state.since_s
        every = sorted(stored_entries(self._store.path), key=lambda entry: entry.key.raw)
        chosen = [entry for entry in every if subset.holds(entry.key)]
        entries = [entry for entry in chosen if not state.is_done(entry)]
        self.num_resumed = len(chosen) - len(entries)
        num_all = sum(entry.num_bytes for entry in entries)
        after, saved_s = state.after, time.monotonic()
        try:
            for entry in entries:
                self._check(entry.key, entry.num_bytes)
                after = entry.key if after is None or entry.key.raw > after.raw else after
                on_progress(self.num_bytes, num_all)
                if time.monotonic() - saved_s > _SAVE_EVERY_S:
                    self._save(after)
                    saved_s = time.monotonic()
        except BaseException:
            self._save(after)
            raise
        if self._read_data:
            forget_state(self._store, self._state_name)

    def _check(self, key: EntryKey, num_bytes: int) -> None:
        problem = self._problem(key)
        self._suspects.discard(key)
        if problem is not None:
            self.problems.append(problem)
            self._suspects.add(key)
        self.num_done += 1
        self.num_bytes += num_bytes

    def _problem(self, key: EntryKey) -> Problem | None:
        try:
            found = self._store.check(key, payload=self._read_data)
        except StoreError as error:  # the others may be readable
            return Problem("unreadable", key.hex, str(error))
        if found is None or found.missing:  # gone since it was listed: collected, or put away
            return None
        return Problem("damaged", key.hex, found.reason)

    def _save(self, after: EntryKey | None) -> None:
        if self._read_data:
            save_state(
                self._store, self._state_name, CheckState(self._since_s, after, frozenset(self._suspects))
            )


@dataclass(frozen=True, slots=True)
class Missing:
    """Frames of a manifest whose entries are to be encoded again; ``limit`` counts what is written."""

    store: Store
    manifest: Manifest
    frames: tuple[FrameEntry, ...]
    model: str | None
    limit: StoreLimit
    say: Callable[[str], None]


EncodeAgain = Callable[[Missing], Iterator[tuple[FrameEntry, str | None]]]
"""Encodes missing frames into the same keys: yields each when its entry is written, or with the reason why
it cannot be. Raises ``LimitReachedError`` at the limit of the store."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done: entries put away, entries encoded again, and what is left to the user."""

    num_put_away: int
    num_encoded: int
    remaining: tuple[Problem, ...]
    interrupted: bool


def repair(
    store: Store,
    encode_again: EncodeAgain,
    *,
    read_data: bool = False,
    model: str | None = None,
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
    max_bytes = max_store_bytes()
    work = _Repair(store, encode_again, model, say)
    with held_lease(store, "store repair"):
        try:
            work.put_away(read_data, on_progress)
            work.encode(StoreLimit(store, max_bytes))
        except KeyboardInterrupt:
            work.interrupted = True
    return RepairReport(work.num_put_away, work.num_encoded, tuple(work.remaining), work.interrupted)


class _Repair:
    """Keeps the account of one repair."""

    def __init__(
        self, store: Store, encode_again: EncodeAgain, model: str | None, say: Callable[[str], None]
    ) -> None:
        self._store, self._encode_again, self._model, self._say = store, encode_again, model, say
        self.num_put_away = self.num_encoded = 0
        self.remaining: list[Problem] = []
        self.interrupted = self._full = False

    def put_away(self, read_data: bool, on_progress: OnProgress) -> None:
        found = check_store(self._store, read_data=read_data, restart=True, on_progress=on_progress)
        if found.interrupted:
            raise KeyboardInterrupt
        for problem in found.problems:
            if problem.kind == "damaged":
                self.num_put_away += self._store.put_away(EntryKey.from_hex(problem.what))
            elif problem.kind in ("manifest", "unreadable"):
                self.remaining.append(problem)

    def encode(self, limit: StoreLimit) -> None:
        for ref in list_manifests(self._store.home, lambda _: None):  # told by the check
            manifest = None
            with suppress(StoreError):  # forgotten meanwhile, or told by the check
                manifest = read_manifest(ref.path)
            if manifest is not None:
                self._encode(manifest, limit)

    def _encode(self, manifest: Manifest, limit: StoreLimit) -> None:
        missing = {frame.key: frame for frame in manifest.frames if not self._store.is_there(frame.key)}
        if not missing:
            return
        self._say(f"{manifest.recording.id}: {len(missing)} of {len(manifest.frames)} frames have no entry")
        wanted = Missing(self._store, manifest, tuple(missing.values()), self._model, limit, self._say)
        try:
            for frame, refusal in () if self._full else self._encode_again(wanted):
                del missing[frame.key]
                if refusal is None:
                    self.num_encoded += 1
                else:
                    self._remains(manifest, frame, refusal)
        except LimitReachedError as error:
            self._full = True
            self._say(f"stopped: {error}")
        for frame in missing.values():
            self._remains(manifest, frame, f"{VARIABLE} allows no more")

    def _remains(self, manifest: Manifest, frame: FrameEntry, why: str) -> None:
        reason = f"frame {frame.index} of {manifest.recording.id}: {why}"
        self.remaining.append(Problem("missing", frame.key.hex, reason))
