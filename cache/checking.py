"""The check of a whole store: ``seeonce store check``. Finds every problem and moves nothing.

Owns: what is looked at, and in which order. Does not own: the check of one entry (``cache.store``), where
an interrupted check goes on (``cache.check_state``), putting things right (``cache.repairing``).
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cache.check_state import CheckState, forget_state, load_state, save_state
from cache.errors import InputError, StoreError
from cache.inventory import stored_entries
from cache.key import EntryKey
from cache.manifest import list_manifests, read_manifest
from cache.quarantine import in_words, quarantined_entries
from cache.store import Store

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
