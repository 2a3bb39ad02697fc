"""What a store holds, in numbers."""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from cache.base.errors import StoreError
from cache.base.home import Home
from cache.base.text import megabytes, parse_size
from cache.gc import Collection, collect
from cache.key import EncoderId, EncoderSpec, EntryKey
from cache.layout import QUARANTINE, TMP, names_in, read_header, stored_bytes, stored_entries
from cache.leases import Use, recent_uses
from cache.manifest import list_manifests, read_manifest
from cache.quarantine import REASON_SUFFIX
from cache.recordings import own_bytes, stored_recordings, time_text
from cache.store import Store


@dataclass(frozen=True, slots=True)
class EncoderStats:
    """Entries of one encoder. ``label`` names it for a human."""

    encoder_id: EncoderId
    label: str
    num_entries: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts of one store, bytes on disk.

    ``num_frames`` are the frames that manifests name, ``num_shared`` those among them that share an
    entry with another, ``num_bytes_saved`` what they would take if they did not. ``reclaimable`` is what a
    collection would remove now, None when a manifest cannot be read; ``runs`` are the last ones.
    """

    num_entries: int
    num_bytes: int
    encoders: tuple[EncoderStats, ...]
    num_recordings: int
    num_manifests: int
    num_frames: int
    num_shared: int
    num_bytes_saved: int
    num_unreferenced: int
    num_unreadable: int
    num_quarantined: int
    num_tmp: int
    free_bytes: int
    reclaimable: Collection | None
    runs: tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class _Named:
    """What the manifests name."""

    frames_of: Counter[EntryKey]
    encoder_of: dict[EntryKey, EncoderSpec]
    num_recordings: int
    num_manifests: int


_NOTHING = StoreStats(0, 0, (), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, ())


def store_stats(home: Home) -> StoreStats:
    """Count what the store of a home holds; all zero when there is none.

    Raises:
        StoreError: the store is damaged or of a newer format.
    """
    if read_header(home.store) is None:
        return _NOTHING
    store = Store.open(home, create=False)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(home.store)}
    named = _read_manifests(home)
    encoders, num_unreadable = _by_encoder(store, sizes, named)
    frames_of = named.frames_of
    return StoreStats(
        num_entries=len(sizes),
        num_bytes=sum(sizes.values()),
        encoders=encoders,
        num_recordings=named.num_recordings,
        num_manifests=named.num_manifests,
        num_frames=frames_of.total(),
        num_shared=frames_of.total() - len(frames_of),
        num_bytes_saved=sum((count - 1) * sizes.get(key, 0) for key, count in frames_of.items()),
        num_unreferenced=len(sizes.keys() - frames_of.keys()),
        num_unreadable=num_unreadable,
        num_quarantined=_count(home.store / QUARANTINE),
        num_tmp=_count(home.store / TMP),
        free_bytes=store.free_bytes(),
        reclaimable=_reclaimable(store),
        runs=tuple(recent_uses(store.path)),
    )


def _read_manifests(home: Home) -> _Named:
    frames_of: Counter[EntryKey] = Counter()
    encoder_of: dict[EntryKey, EncoderSpec] = {}
    refs = list_manifests(home)
    for ref in refs:
        with suppress(StoreError):  # list_manifests has just reported what cannot be read
            frames = read_manifest(ref.path).frames
            frames_of.update(frame.key for frame in frames)
            encoder_of.update((frame.key, ref.encoder) for frame in frames)
    return _Named(frames_of, encoder_of, len({ref.recording.id for ref in refs}), len(refs))


def _reclaimable(store: Store) -> Collection | None:
    with suppress(StoreError):
        return collect(store, dry_run=True)
    return None


def _by_encoder(
    store: Store, sizes: dict[EntryKey, int], named: _Named
) -> tuple[tuple[EncoderStats, ...], int]:
    num_entries: Counter[EncoderSpec] = Counter()
    num_bytes: Counter[EncoderSpec] = Counter()
    num_unreadable = 0
    for key, size in sizes.items():
        encoder = named.encoder_of.get(key) or _encoder_of(store, key)
        if encoder is None:
            num_unreadable += 1
            continue
        num_entries[encoder] += 1
        num_bytes[encoder] += size
    rows = (
        EncoderStats(encoder.encoder_id, _label(encoder), count, num_bytes[encoder])
        for encoder, count in num_entries.most_common()
    )
    return tuple(rows), num_unreadable


def _encoder_of(store: Store, key: EntryKey) -> EncoderSpec | None:
    info = store.peek(key)
    return None if info is None else info.encoder


def _label(encoder: EncoderSpec) -> str:
    tower = f"{encoder.architecture} {encoder.depth}x{encoder.hidden_size} {encoder.compute_dtype}"
    return f"{tower}, at most {encoder.preprocessing.max_pixels:,} pixels"


def _count(path: Path) -> int:
    return sum(not name.endswith(REASON_SUFFIX) for name in names_in(path))


VARIABLE = "SEEONCE_STORE_MAX"
_METADATA_BYTES = 2048  # of one entry, about
_NUM_NAMED = 3


def max_store_bytes(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the limit that the environment sets, or None.

    Raises:
        InputError: it is no size.
    """
    text = environ.get(VARIABLE, "").strip()
    return parse_size(text, VARIABLE) if text else None


class LimitReachedError(StoreError):
    """The store is as large as it may be; what was encoded stays."""


class StoreLimit:
    """Counts what is written against the limit. Not for several threads at once.

    The store is looked through at the beginning, and again whenever half of what was left then is used:
    other processes write too, and a look at every entry would cost more with every entry.
    """

    def __init__(self, store: Store, max_bytes: int | None) -> None:
        """``max_bytes`` None is no limit, and costs nothing."""
        self._store, self._max_bytes = store, max_bytes
        self._used_bytes = self._until_look = 0
        if max_bytes is not None:
            self._look()

    @classmethod
    def of(cls, store: Store, environ: Mapping[str, str] = os.environ) -> Self:
        """Take the limit from the environment.

        Raises:
            InputError: it is no size.
        """
        return cls(store, max_store_bytes(environ))

    def require(self, num_bytes: int, num_entries: int) -> None:
        """Refuse what does not fit, before it is begun.

        Raises:
            LimitReachedError: so much more is beyond the limit.
        """
        if self._max_bytes is not None and not self.fits(num_bytes, num_entries):
            raise self._reached(f"Encoding needs up to {megabytes(num_bytes)} more")

    def fits(self, num_bytes: int, num_entries: int) -> bool:
        """Say whether so much more would be within the limit."""
        needed = num_bytes + num_entries * _METADATA_BYTES
        return self._max_bytes is None or self._used_bytes + needed <= self._max_bytes

    def take(self, num_bytes: int) -> None:
        """Count an entry that is about to be written.

        Raises:
            LimitReachedError: it would be beyond the limit.
        """
        if self._max_bytes is None:
            return
        needed = num_bytes + _METADATA_BYTES
        if needed > self._until_look:
            self._look()
        if not self.fits(num_bytes, 1):
            raise self._reached("what is encoded stays, and no more")
        self._used_bytes += needed
        self._until_look -= needed

    def _look(self) -> None:
        # Never less than what was counted: entries on their way are not yet seen.
        self._used_bytes = max(self._used_bytes, stored_bytes(self._store.path))
        self._until_look = max(0, ((self._max_bytes or 0) - self._used_bytes) // 2)

    def _reached(self, what: str) -> LimitReachedError:
        return LimitReachedError(
            f"{what}: the store has {megabytes(self._used_bytes)} and {VARIABLE} allows "
            f"{megabytes(self._max_bytes or 0)}; {_what_would_free(self._store)}, or raise {VARIABLE}"
        )


def _what_would_free(store: Store) -> str:
    try:
        reclaimable = megabytes(collect(store, dry_run=True).num_bytes)
    except StoreError as error:
        return f"nothing can be collected ({error})"
    recordings = stored_recordings(store.home)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(store.path)}
    named = [
        f"{recording.id} ({megabytes(own_bytes(recording, recordings, sizes))}, last used "
        f"{time_text(recording.used_s)[:10]})"
        for recording in islice(recordings, _NUM_NAMED)
    ]
    oldest = f"; least recently used: {', '.join(named)}: seeonce store forget ID" if named else ""
    return f"seeonce store gc frees {reclaimable}{oldest}"
