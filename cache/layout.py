"""The folders of a store and its ``store.json``."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, canonical, parse, seal, unseal
from cache.base.errors import NotEncodedError, StoreError
from cache.base.files import Durability, Folder, sync_fd
from cache.entry import CHUNK_NAME, METADATA_NAME
from cache.key import EntryKey

STORE_FORMAT = 1
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
STORE_FILE = "store.json"
FRAMES, RECORDINGS, THUMBS, INDEX = "frames", "recordings", "thumbs", "index"
TMP, TRASH, QUARANTINE, LEASES, USAGE = "tmp", "trash", "quarantine", "leases", "usage"

_GROUPS = tuple(f"{number:02x}" for number in range(256))
_GROUP_FILE = "zarr.json"
_GROUP = canonical({"attributes": {}, "node_type": "group", "zarr_format": 3})
_MAX_STORE_FILE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class StoreHeader:
    """What ``store.json`` says."""

    format: int
    store_id: str
    created_at: str


def time_text(posix_s: float) -> str:
    """Return a time as the store writes it: ISO 8601, UTC, seconds."""
    return datetime.fromtimestamp(posix_s, UTC).strftime(TIME_FORMAT)


def now() -> str:
    """Return the present time as the store writes it."""
    return time_text(time.time())


def read_header(store: Path) -> StoreHeader | None:
    """Read ``store.json``; None when there is no store.

    Raises:
        StoreError: a newer format, or a damaged file.
    """
    path = store / STORE_FILE
    try:
        with Folder.open_root(store) as root:
            raw = root.read(STORE_FILE, _MAX_STORE_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check SEEONCE_HOME") from error
    try:
        if (found := parse(raw, str(path)).integer("format")) > STORE_FORMAT:
            raise _newer(store, found)
        document = unseal(raw, str(path))
    except _NewerFormatError:
        raise
    except StoreError as error:
        raise StoreError(f"{error}; remove that file and run seeonce encode: the entries stay") from None
    return StoreHeader(document.integer("format"), document.text("store_id"), document.text("created_at"))


class _NewerFormatError(StoreError):
    """Kept apart from damage: here nothing may be removed."""


def _newer(store: Path, found: int) -> _NewerFormatError:
    return _NewerFormatError(
        f"the store {store} has format {found}, this seeonce reads format {STORE_FORMAT}: "
        "upgrade seeonce, or set SEEONCE_HOME to another folder"
    )


def require_header(store: Path) -> StoreHeader:
    """Read ``store.json``.

    Raises:
        NotEncodedError: there is no store.
        StoreError: as ``read_header``.
    """
    header = read_header(store)
    if header is None:
        raise NotEncodedError(f"there is no store at {store}: run seeonce encode first, or set SEEONCE_HOME")
    return header


def create_layout(store: Path, durability: Durability) -> StoreHeader:
    """Make what is missing of a store; several processes may do so at once. ``store.json`` comes last.

    Raises:
        OSError: the disk refuses.
    """
    with Folder.open_root(store.parent) as home:
        home.make_folder(store.name, exist_ok=True)
        home.sync(durability)
    with Folder.open_root(store) as root:
        for name in (FRAMES, RECORDINGS, THUMBS, INDEX, TMP, TRASH, QUARANTINE, LEASES, USAGE):
            root.make_folder(name, exist_ok=True)
        # Groups can be made again at any time, so they need no fsync of their own.
        root.write_once(_GROUP_FILE, _GROUP, Durability.none)
        with root.folder(FRAMES) as frames:
            frames.write_once(_GROUP_FILE, _GROUP, Durability.none)
            for name in _GROUPS:
                make_group(frames, name)
            frames.sync(durability)
        header: dict[str, JsonValue] = {
            "format": STORE_FORMAT,
            "store_id": secrets.token_hex(16),
            "created_at": now(),
        }
        root.write_once(STORE_FILE, seal({**header, SEAL_FIELD: UNSEALED}), durability)
        root.sync(durability)
    return require_header(store)


def sync_layout(store: Path, durability: Durability) -> None:
    """Make the folders of a store durable that another process may have made a moment ago.

    Raises:
        OSError: the disk refuses.
    """
    if durability is Durability.none:
        return
    with (
        Folder.open_root(store) as root,
        root.folder(FRAMES) as frames,
        Folder.open_root(store.parent) as home,
    ):
        with root.open_file(STORE_FILE) as header:
            sync_fd(header, durability)
        sync_fd(frames.fd, durability)
        sync_fd(root.fd, durability)
        home.sync(durability)


def make_group(frames: Folder, name: str) -> None:
    """Make one of the 256 groups below ``frames/``."""
    frames.make_folder(name, exist_ok=True)
    with frames.folder(name) as group:
        # All 257 say the same and none is ever changed: links make a new store four times as fast.
        if not frames.link(_GROUP_FILE, group):
            group.write_once(_GROUP_FILE, _GROUP, Durability.none)


def group_name(key: EntryKey) -> str:
    """Return which of the 256 groups a key belongs to: its first two digits."""
    return key.hex[:2]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry's folder. ``used_s`` is when it was written or hit, in POSIX seconds.

    ``changed_s`` is when it came to its place or was hit, whichever is later; nobody can set it.
    """

    key: EntryKey
    num_bytes: int
    used_s: float
    changed_s: float


def stored_entries(store: Path) -> Iterator[StoredEntry]:
    """Yield every entry of a store, in no particular order; what vanishes meanwhile is left out."""
    for group in _groups(store / FRAMES):
        folder = f"{store}/{FRAMES}/{group}"
        for name in names_in(folder):
            with suppress(ValueError, FileNotFoundError, NotADirectoryError):
                key = EntryKey.from_hex(name)
                if name.startswith(group):
                    found = os.lstat(f"{folder}/{name}")
                    size = size_of_entry(f"{folder}/{name}")
                    yield StoredEntry(key, size, found.st_mtime, found.st_ctime)


def _groups(frames: Path) -> list[str]:
    """Return the group folders: one that is a symlink holds no entry, as for a reader."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(frames) as items:
        return [item.name for item in items if item.is_dir(follow_symlinks=False)]
    return []


def stored_bytes(store: Path) -> int:
    """Return the bytes of all entries."""
    return sum(entry.num_bytes for entry in stored_entries(store))


def size_of_entry(folder: str) -> int:
    """Return the bytes of an entry's two files; a missing one takes none."""
    size = 0
    for name in (CHUNK_NAME, METADATA_NAME):
        with suppress(OSError):
            size += os.lstat(f"{folder}/{name}").st_size
    return size


def names_in(path: Path | str) -> list[str]:
    """Return the names in a folder; none when it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as items:
        return [item.name for item in items]
    return []
