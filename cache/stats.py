"""What a store holds, in numbers.

Owns: the counting. Does not own: checking (``cache.store``): no payload is read, and no metadata of
an entry that a manifest names, since the manifest knows its encoder.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.collecting import Collection, collect
from cache.errors import StoreError
from cache.home import Home
from cache.inventory import names_in, stored_entries
from cache.key import EncoderId, EncoderSpec, EntryKey
from cache.layout import QUARANTINE, TMP, read_header
from cache.manifest import list_manifests, read_manifest
from cache.quarantine import REASON_SUFFIX
from cache.store import Store
from cache.usage import Use, recent_uses


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
