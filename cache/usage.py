"""What a store was used for: entries in use now, and the hits and misses of the last runs.

Owns: ``usage/``, one small file a run and only the last ones kept. Does not own: leases
(``cache.leases``), when a recording was last used (``cache.listing``).
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.canonical_json import canonical, parse
from cache.errors import StoreError
from cache.files import Durability, Folder
from cache.inventory import names_in
from cache.layout import USAGE, now
from cache.leases import held_lease
from cache.listing import mark_used
from cache.manifest import Manifest, manifest_path
from cache.store import Store

KEPT = 20
_SUFFIX = ".json"
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Use:
    """One run. Pass one counts frames, pass two entries; ``num_bytes`` is the payload that was written."""

    kind: str
    recording: str
    at: str
    num_hits: int
    num_misses: int
    num_bytes: int


@contextmanager
def entries_in_use(store: Store, kind: str, manifest: Manifest) -> Iterator[None]:
    """Keep every entry that a manifest names from being collected while the block runs.

    Also when the manifest is replaced or forgotten meanwhile: a lease is taken, then each is touched.
    Afterwards hits and misses are noted: a damaged entry has been put away by then.
    """
    recording, keys = manifest.recording.id, {frame.key for frame in manifest.frames}
    with held_lease(store, f"{kind} {recording}"):
        if store.writable:
            mark_used(manifest_path(store.home, recording, manifest.encoder.encoder_id).parent)
        for key in keys:
            store.touch(key)
        try:
            yield
        finally:
            num_hits = sum(map(store.is_there, keys))
            record_use(store, kind, recording, num_hits, len(keys) - num_hits, 0)


def record_use(
    store: Store, kind: str, recording: str, num_hits: int, num_misses: int, num_bytes: int
) -> None:
    """Keep a note of a run, in place of the oldest; best effort."""
    use = Use(kind, recording, now(), num_hits, num_misses, num_bytes)
    if not store.writable:
        return
    with suppress(OSError), Folder.open_root(store.path) as root:
        root.make_folder(USAGE, exist_ok=True)
        with root.folder(USAGE) as folder:
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}{_SUFFIX}"
            folder.replace(name, canonical(asdict(use)), Durability.none)
            for old in sorted(folder.names())[:-KEPT]:
                folder.unlink(old)


def forget_uses(store: Store, recording: str) -> None:
    """Remove the notes of a recording's runs; best effort."""
    for name in names_in(store.path / USAGE):
        with suppress(OSError, StoreError), Folder.open(store.path / USAGE) as folder:
            if _read(store.path, name).recording == recording:
                folder.unlink(name)


def recent_uses(store: Path) -> list[Use]:
    """Return the last runs, the newest first; what cannot be read is left out."""
    found = []
    for name in sorted(names_in(store / USAGE), reverse=True):
        if name.endswith(_SUFFIX) and not name.startswith("."):
            with suppress(OSError, StoreError):
                found.append(_read(store, name))
    return found


def _read(store: Path, name: str) -> Use:
    with Folder.open(store / USAGE) as folder:
        document = parse(folder.read(name, _MAX_BYTES), name)
    return Use(
        kind=document.text("kind"),
        recording=document.text("recording"),
        at=document.text("at"),
        num_hits=document.integer("num_hits"),
        num_misses=document.integer("num_misses"),
        num_bytes=document.integer("num_bytes"),
    )
