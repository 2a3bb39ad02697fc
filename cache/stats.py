"""What a store holds, in numbers, and the limit that SEEONCE_STORE_MAX sets."""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from cache.base.errors import StoreError
from cache.base.home import Home
from cache.base.text import megabytes, parse_size
from cache.forget import least_used
from cache.gc import Collection, collect
from cache.key import EncoderId, EncoderSpec, EntryKey
from cache.layout import TMP, names_in, read_store_id, stored_bytes, stored_entries, time_text
from cache.leases import Use, recent_uses
from cache.manifest import ManifestRef, list_manifests
from cache.prefixes import prefix_totals
from cache.quarantine import quarantined
from cache.store import Store

STORE_MAX = "SEEONCE_STORE_MAX"
_METADATA_BYTES = 2048  # of one entry, about
_NUM_NAMED = 3


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
    ``num_prefixes`` lie in the prefix cache beside the store.
    """

    num_entries: int = 0
    num_bytes: int = 0
    encoders: tuple[EncoderStats, ...] = ()
    num_recordings: int = 0
    num_manifests: int = 0
    num_frames: int = 0
    num_shared: int = 0
    num_bytes_saved: int = 0
    num_unreferenced: int = 0
    num_unreadable: int = 0
    num_quarantined: int = 0
    num_tmp: int = 0
    free_bytes: int = 0
    reclaimable: Collection | None = None
    runs: tuple[Use, ...] = ()
    num_prefixes: int = 0
    prefix_bytes: int = 0


def store_stats(home: Home) -> StoreStats:
    """Count what the store of a home holds; all zero when there is none.

    Raises:
        StoreError: the store is damaged or of a newer format.
    """
    if read_store_id(home.store) is None:
        return StoreStats()
    store = Store.open(home, create=False)
    sizes = {entry.key: entry.num_bytes for entry in stored_entries(home.store)}
    refs = list_manifests(home)
    frames_of = Counter(key for ref in refs for key in ref.keys)
    encoders, num_unreadable = _by_encoder(store, sizes, refs)
    num_prefixes, prefix_bytes = prefix_totals(home)
    return StoreStats(
        num_entries=len(sizes),
        num_bytes=sum(sizes.values()),
        encoders=encoders,
        num_recordings=len({ref.recording.id for ref in refs}),
        num_manifests=len(refs),
        num_frames=frames_of.total(),
        num_shared=frames_of.total() - len(frames_of),
        num_bytes_saved=sum((count - 1) * sizes.get(key, 0) for key, count in frames_of.items()),
        num_unreferenced=len(sizes.keys() - frames_of.keys()),
        num_unreadable=num_unreadable,
        num_quarantined=len(quarantined(home.store)),
        num_tmp=len(names_in(home.store / TMP)),
        free_bytes=store.free_bytes(),
        reclaimable=_reclaimable(store),
        runs=tuple(recent_uses(store.path)),
        num_prefixes=num_prefixes,
        prefix_bytes=prefix_bytes,
    )


def _reclaimable(store: Store) -> Collection | None:
    with suppress(StoreError):
        return collect(store, dry_run=True)
    return None


def _by_encoder(
    store: Store, sizes: dict[EntryKey, int], refs: list[ManifestRef]
) -> tuple[tuple[EncoderStats, ...], int]:
    encoder_of = {key: ref.encoder for ref in refs for key in ref.keys}
    num_entries: Counter[EncoderSpec] = Counter()
    num_bytes: Counter[EncoderSpec] = Counter()
    for key, size in sizes.items():
        info = None if key in encoder_of else store.peek(key)
        if encoder := info.encoder if info else encoder_of.get(key):
            num_entries[encoder] += 1
            num_bytes[encoder] += size
    rows = (
        EncoderStats(encoder.encoder_id, _label(encoder), count, num_bytes[encoder])
        for encoder, count in num_entries.most_common()
    )
    return tuple(rows), len(sizes) - num_entries.total()


def _label(encoder: EncoderSpec) -> str:
    tower = f"{encoder.architecture} {encoder.depth}x{encoder.hidden_size} {encoder.compute_dtype}"
    return f"{tower}, at most {encoder.preprocessing.max_pixels:,} pixels"


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

    @classmethod
    def of(cls, store: Store, environ: Mapping[str, str] = os.environ) -> Self:
        """Take the limit from the environment.

        Raises:
            InputError: it is no size.
        """
        text = environ.get(STORE_MAX, "").strip()
        return cls(store, parse_size(text, STORE_MAX) if text else None)

    def fits(self, num_bytes: int, num_entries: int) -> bool:
        """Say whether so much more would be within the limit."""
        if self._max_bytes is None:
            return True
        needed = num_bytes + num_entries * _METADATA_BYTES
        if needed > self._until_look:
            # Never less than what was counted: entries on their way are not yet seen.
            self._used_bytes = max(self._used_bytes, stored_bytes(self._store.path))
            self._until_look = max(0, (self._max_bytes - self._used_bytes) // 2)
        return self._used_bytes + needed <= self._max_bytes

    def require(self, num_bytes: int, num_entries: int) -> None:
        """Refuse what does not fit, before it is begun.

        Raises:
            LimitReachedError: so much more is beyond the limit.
        """
        if not self.fits(num_bytes, num_entries):
            raise self._reached(f"Encoding needs up to {megabytes(num_bytes)} more")

    def take(self, num_bytes: int) -> None:
        """Count an entry that is about to be written.

        Raises:
            LimitReachedError: it would be beyond the limit.
        """
        if not self.fits(num_bytes, 1):
            raise self._reached("what is there stays, and nothing more is written")
        self._used_bytes += num_bytes + _METADATA_BYTES
        self._until_look -= num_bytes + _METADATA_BYTES

    def _reached(self, what: str) -> LimitReachedError:
        return LimitReachedError(
            f"{what}: the store has {megabytes(self._used_bytes)} and {STORE_MAX} allows "
            f"{megabytes(self._max_bytes or 0)}; {_what_would_free(self._store)}, or raise {STORE_MAX}"
        )


def _what_would_free(store: Store) -> str:
    try:
        reclaimable = megabytes(collect(store, dry_run=True).num_bytes)
    except StoreError as error:
        return f"nothing can be collected ({error})"
    named = [
        f"{recording.id} ({megabytes(num_bytes)}, last used {time_text(recording.used_s)[:10]})"
        for recording, num_bytes in least_used(store, max_bytes=0)[:_NUM_NAMED]
    ]
    oldest = f"; least recently used: {', '.join(named)}: seeonce store forget ID" if named else ""
    return f"seeonce store gc frees {reclaimable}{oldest}"
