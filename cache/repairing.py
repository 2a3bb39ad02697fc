"""The repair of a store: ``seeonce store repair``. Damaged entries are put away, missing ones encoded again.

Owns: what is to be done, and the account of it. Does not own: finding the problems (``cache.checking``), the
encoding, which comes in as ``EncodeAgain``: the store knows no model.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from cache.checking import OnProgress, Problem, check_store
from cache.errors import StoreError
from cache.key import EntryKey
from cache.leases import held_lease
from cache.limit import VARIABLE, LimitReachedError, StoreLimit, max_store_bytes
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.store import Store


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
