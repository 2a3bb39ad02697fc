"""Leases: how a running encode, describe or verify-cache keeps garbage collection from its entries.

Every doubt counts as an active lease: a file that cannot be read, a start in the future, an expired lease
whose process lives (a suspended machine, a clock that was put forward). But what a wrong clock dated days
ahead would count for ever, so it counts no longer than its process.
Also the notes in ``usage/`` of the last runs (``Use``).
"""

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonValue, canonical, parse, seal, unseal
from cache.base.errors import StoreError
from cache.base.files import Durability, Folder
from cache.layout import LEASES, TIME_FORMAT, USAGE, names_in, now, time_text
from cache.manifest import Manifest, manifest_path
from cache.store import Store
from cache.trash import is_alive, tmp_name

LEASE_S = 900
RENEW_S = 60
DOUBT_S = 24 * 3600  # how long an expired lease still counts while its process may be alive

_MAX_BYTES = 64 << 10
_FIELDS = frozenset({"expires_at", SEAL_FIELD, "pid", "purpose", "since"})
_MAX_USES = 20
_SUFFIX = ".json"

_log = logging.getLogger("seeonce.cache")


@dataclass(frozen=True, slots=True)
class Lease:
    """An active lease. ``since_s`` is its start in POSIX seconds, minus infinity when that is unknown."""

    name: str
    purpose: str
    since_s: float


@contextmanager
def held_lease(store: Store, purpose: str, renew_s: float = RENEW_S) -> Iterator[None]:
    """Hold a lease as long as the block runs. Take it before the first look at an entry.

    A store that cannot be written to needs none: nobody collects there.
    """
    if not store.writable:
        yield
        return
    name, since_s, ended = tmp_name() + _SUFFIX, time.time(), threading.Event()
    _write_lease(store.path, name, purpose, since_s)

    def renew() -> None:
        nonlocal since_s
        while not ended.wait(renew_s):
            since_s = min(since_s, time.time())  # the clock may have been put back
            _write_lease(store.path, name, purpose, since_s)

    thread = threading.Thread(target=renew, name="seeonce-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            with Folder.open(store.path / LEASES) as leases:
                leases.unlink(name)
        except OSError as error:
            _log.warning("cannot remove a lease in %s: %s", store.path / LEASES, error.strerror)


def _write_lease(store: Path, name: str, purpose: str, since_s: float) -> None:
    document: dict[str, JsonValue] = {
        "expires_at": time_text(time.time() + LEASE_S),
        "pid": os.getpid(),
        "purpose": purpose,
        "since": time_text(since_s),
        SEAL_FIELD: UNSEALED,
    }
    try:
        with Folder.open_root(store) as root:
            root.make_folder(LEASES, exist_ok=True)
            with root.folder(LEASES) as leases:
                leases.replace(name, seal(document), Durability.none)
    except OSError as error:  # a full disk: what was used within a day is safe without a lease
        _log.warning("cannot write a lease in %s: %s", store / LEASES, error.strerror)


def active_leases(store: Path, now_s: float | None = None) -> list[Lease]:
    """Return the leases that count, the oldest first."""
    now_s = time.time() if now_s is None else now_s
    found = [_active(store, name, now_s) for name in names_in(store / LEASES) if _is_lease(name)]
    return sorted((lease for lease in found if lease is not None), key=lambda lease: lease.since_s)


def expired_leases(store: Path) -> list[str]:
    """Return the names of what nobody needs in ``leases/``: files that stopped counting a day ago."""
    oldest = time.time() - DOUBT_S - LEASE_S
    active = {lease.name for lease in active_leases(store)}
    with suppress(FileNotFoundError), Folder.open(store / LEASES) as leases:
        names = [name for name in leases.names() if name not in active]
        return [name for name in names if leases.modified_s(name) < oldest]
    return []


def _active(store: Path, name: str, now_s: float) -> Lease | None:
    modified_s = now_s
    try:
        with Folder.open(store / LEASES) as leases:
            modified_s = leases.modified_s(name)
            document = unseal(leases.read(name, _MAX_BYTES), name).only(_FIELDS)
        since_s, expires_s = _seconds(document.text("since")), _seconds(document.text("expires_at"))
        purpose = document.text("purpose")
    except FileNotFoundError:  # dropped meanwhile
        return None
    except (OSError, StoreError, ValueError):
        is_young = abs(now_s - modified_s) < DOUBT_S  # one that lives is written anew every minute
        return Lease(name, "a lease that cannot be read", -math.inf) if is_young else None
    counts = expires_s - LEASE_S - DOUBT_S <= now_s < expires_s
    if counts or (now_s < expires_s + DOUBT_S and is_alive(name)):
        return Lease(name, purpose, since_s if since_s <= now_s else -math.inf)
    return None


def _is_lease(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _seconds(text: str) -> float:
    return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC).timestamp()


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
    Afterwards hits and misses are noted: a damaged entry is in quarantine by then.
    """
    recording, keys = manifest.recording.id, {frame.key for frame in manifest.frames}
    with held_lease(store, f"{kind} {recording}"):
        if store.writable:
            with suppress(OSError):  # the last use of the recording; best effort
                os.utime(manifest_path(store.home, recording, manifest.encoder.encoder_id).parent)
        for key in keys:
            store.touch(key)
        try:
            yield
        finally:
            num_hits = sum(map(store.exists, keys))
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
            for old in sorted(folder.names())[:-_MAX_USES]:
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
        return parse(folder.read(name, _MAX_BYTES), name).record(Use)
