"""The repair of a store: ``seeonce store repair``. Damaged entries are put away, missing ones encoded again.

Owns: what is to be done, and the account of it. Does not own: finding the problems (``cache.checking``), the
encoding, which comes in as ``EncodeAgain``: the store knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cache.checking import OnProgress, Problem, check_store
from cache.errors import StoreError
from cache.key import EntryKey
from cache.leases import held_lease
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.store import Store


class EncodeAgain(Protocol):
    """Encodes frames of a manifest whose entries are missing, into the same keys."""

    def __call__(
        self,
        store: Store,
        manifest: Manifest,
        frames: Sequence[FrameEntry],
        model: str | None,
        say: Callable[[str], None],
    ) -> Iterator[tuple[FrameEntry, str | None]]:
        """Yield each frame when its entry is written, or with the reason why it cannot be."""


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

    Raises:
        StoreError: the store is read-only, or the disk refuses.
    """
    if not store.writable:
        raise StoreError(f"the store {store.path} is read-only: nothing can be repaired in it")
    work = _Repair(store, encode_again, model, say)
    with held_lease(store, "store repair"):
        try:
            work.put_away(read_data, on_progress)
            work.encode()
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
        self.interrupted = False

    def put_away(self, read_data: bool, on_progress: OnProgress) -> None:
        found = check_store(self._store, read_data=read_data, restart=True, on_progress=on_progress)
        if found.interrupted:
            raise KeyboardInterrupt
        for problem in found.problems:
            if problem.kind == "damaged":
                self.num_put_away += self._store.put_away(EntryKey.from_hex(problem.what))
            elif problem.kind in ("manifest", "unreadable"):
                self.remaining.append(problem)

    def encode(self) -> None:
        for ref in list_manifests(self._store.home, lambda _: None):  # told by the check
            manifest = None
            with suppress(StoreError):  # forgotten meanwhile, or told by the check
                manifest = read_manifest(ref.path)
            if manifest is not None:
                self._encode(manifest)

    def _encode(self, manifest: Manifest) -> None:
        missing = {frame.key: frame for frame in manifest.frames if not self._store.is_there(frame.key)}
        if not missing:
            return
        id_ = manifest.recording.id
        self._say(f"{id_}: {len(missing)} of {len(manifest.frames)} frames have no entry")
        frames = list(missing.values())
        for frame, refusal in self._encode_again(self._store, manifest, frames, self._model, self._say):
            if refusal is None:
                self.num_encoded += 1
            else:
                reason = f"frame {frame.index} of {id_}: {refusal}"
                self.remaining.append(Problem("missing", frame.key.hex, reason))
