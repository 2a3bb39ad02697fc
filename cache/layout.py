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
from cache.base.errors import StoreError
from cache.base.files import Durability, Folder, sync_fd
from cache.entry import CHUNK_NAME, METADATA_NAME
from cache.key import Digest, EntryKey

STORE_FORMAT = 1
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
STORE_FILE = "store.json"
_GROUPS = tuple(f"{number:02x}" for number in range(256))
_GROUP_FILE = "zarr.json"
_GROUP = canonical({"attributes": {}, "node_type": "group", "zarr_format": 3})
MAX_STORE_FILE_BYTES = 64 << 10
FRAMES, RECORDINGS, THUMBS, INDEX = "frames", "recordings", "thumbs", "index"
SHARDS = "shards"  # in a bucket alone
TMP, TRASH, QUARANTINE, LEASES, USAGE = "tmp", "trash", "quarantine", "leases", "usage"


def time_text(posix_s: float) -> str:
    """Return a time as the store writes it: ISO 8601, UTC, seconds."""
    return datetime.fromtimestamp(posix_s, UTC).strftime(TIME_FORMAT)


def now() -> str:
    """Return the present time as the store writes it."""
    return time_text(time.time())


def read_store_id(store: Path) -> str | None:
    """Read ``store.json``; None when there is no store.

    Raises:
        StoreError: a newer format, or a damaged file.
    """
    path = store / STORE_FILE
    try:
        with Folder.open_root(store) as root:
            raw = root.read(STORE_FILE, MAX_STORE_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check SEEONCE_HOME") from error
    return store_id_of(raw, str(path))


def store_id_of(raw: bytes, what: str) -> str:
    """Return the id in the bytes of a ``store.json``; ``what`` names it in messages.

    Raises:
        StoreError: a newer format, or damaged bytes.
    """
    try:
        if (found := parse(raw, what).integer("format")) <= STORE_FORMAT:
            return unseal(raw, what).text("store_id")
    except StoreError as error:
        raise StoreError(f"{error}; remove that file and run seeonce encode: the entries stay") from None
    raise StoreError(
        f"the store {what.removesuffix(f'/{STORE_FILE}')} has format {found}, this seeonce reads format "
        f"{STORE_FORMAT}: upgrade seeonce, or set SEEONCE_HOME to another folder"
    )


def new_store_file() -> bytes:
    """Return the bytes of the ``store.json`` of a new store."""
    header: dict[str, JsonValue] = {
        "format": STORE_FORMAT,
        "store_id": secrets.token_hex(16),
        "created_at": now(),
    }
    return seal({**header, SEAL_FIELD: UNSEALED})


def create_layout(store: Path, durability: Durability) -> None:
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
        root.write_once(STORE_FILE, new_store_file(), durability)
        root.sync(durability)


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


def group_name(key: Digest) -> str:
    """Return which of the 256 groups a key belongs to: its first two digits."""
    return key.hex[:2]


def entry_folder(store: Path | str, key: Digest) -> str:
    """Return where an entry lies."""
    return f"{store}/{FRAMES}/{group_name(key)}/{key.hex}"


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry's folder. ``used_s`` is when it was written or hit, in POSIX seconds.

    ``changed_s`` is when it came to its place or was hit, whichever is later; nobody can set it.
    """

    key: EntryKey
    num_bytes: int
    used_s: float
    changed_s: float


def stored_keys(store: Path) -> Iterator[EntryKey]:
    """Yield the key of every entry, in no particular order; entries are not opened."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(store / FRAMES) as groups:
        for group in groups:
            if group.is_dir(follow_symlinks=False):  # a symlink holds no entry, as for a reader
                for name in names_in(group.path):
                    with suppress(ValueError):
                        if name.startswith(group.name):
                            yield EntryKey.from_hex(name)


def stored_entries(
    store: Path, files: tuple[str, ...] = (CHUNK_NAME, METADATA_NAME)
) -> Iterator[StoredEntry]:
    """Yield every entry of a store, in no particular order; what vanishes meanwhile is left out."""
    for key in stored_keys(store):
        folder, num_bytes = entry_folder(store, key), 0
        for name in files:
            with suppress(OSError):
                num_bytes += os.lstat(f"{folder}/{name}").st_size
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.lstat(folder)
            yield StoredEntry(key, num_bytes, found.st_mtime, found.st_ctime)


def stored_bytes(store: Path) -> int:
    """Return the bytes of all entries."""
    return sum(entry.num_bytes for entry in stored_entries(store))


def names_in(path: Path | str) -> list[str]:
    """Return the names in a folder; none when it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as items:
        return [item.name for item in items]
    return []
