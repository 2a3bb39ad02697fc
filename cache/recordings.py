"""Recordings as the store sees them: what each names, what that takes, when it was last used."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cache.base.errors import StoreError
from cache.base.home import Home
from cache.key import EntryKey
from cache.manifest import ManifestRef, list_manifests, manifest_names


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A recording under one encoder. ``used_s`` is when it was last encoded, described or verified."""

    ref: ManifestRef
    keys: frozenset[EntryKey]
    used_s: float


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """A recording under all its encoders."""

    id: str
    manifests: tuple[StoredManifest, ...]

    @property
    def keys(self) -> frozenset[EntryKey]:
        """Every entry that it names."""
        return frozenset().union(*(manifest.keys for manifest in self.manifests))

    @property
    def used_s(self) -> float:
        """When it was last used, in POSIX seconds."""
        return max(manifest.used_s for manifest in self.manifests)


def stored_recordings(home: Home) -> list[StoredRecording]:
    """Return every recording with a readable manifest, the least recently used first."""
    by_id: dict[str, list[StoredManifest]] = {}
    for ref in list_manifests(home):
        with suppress(StoreError):  # forgotten meanwhile; what is damaged was told by list_manifests
            by_id.setdefault(ref.recording.id, []).append(
                StoredManifest(ref, manifest_names(ref.path).keys, last_use_s(ref))
            )
    found = [StoredRecording(id_, tuple(manifests)) for id_, manifests in by_id.items()]
    return sorted(found, key=lambda recording: (recording.used_s, recording.id))


def last_use_s(ref: ManifestRef) -> float:
    """Return when a manifest was last written or used: its folder is touched then."""
    created_s = 0.0
    with suppress(ValueError):
        created_s = datetime.fromisoformat(ref.created_at).timestamp()
    with suppress(OSError):
        return max(created_s, ref.path.parent.stat().st_mtime)
    return created_s


def mark_used(ref_folder: os.PathLike[str]) -> None:
    """Remember that a manifest is used now; best effort."""
    with suppress(OSError):
        os.utime(ref_folder)


def own_bytes(
    recording: StoredRecording, all_of_them: list[StoredRecording], sizes: Mapping[EntryKey, int]
) -> int:
    """Return the bytes of the entries that no other recording names."""
    others = frozenset().union(*(other.keys for other in all_of_them if other.id != recording.id))
    return sum(sizes.get(key, 0) for key in recording.keys - others)


def time_text(posix_s: float) -> str:
    """Return a time as the store writes it."""
    return datetime.fromtimestamp(posix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
