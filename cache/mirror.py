"""Entries between a local store and a bucket: pushed, pulled, or read through when they are missed.

What was transferred stays, so the same call goes on where an interrupted one was. Manifests come last.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import NotEncodedError, StoreError
from cache.base.files import Durability
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import counted
from cache.bucket import NUM_TRANSFERS, BucketStore
from cache.bucket_upkeep import require_entries
from cache.commit import Read
from cache.entry import CHECKSUM_BYTES, DamagedError, Features, checksum
from cache.key import EntryKey
from cache.leases import held_lease
from cache.manifest import (
    Manifest,
    ManifestHead,
    list_manifests,
    manifest_path,
    matching_recording,
    read_manifest,
)
from cache.objects import Stream, UnreachableError, check_address
from cache.reading import features_of
from cache.stats import StoreLimit
from cache.store import Store

REMOTE = "SEEONCE_REMOTE"
_BATCH_ENTRIES = 16  # that share their fsyncs when they are pulled

Answer = TypeVar("Answer")
Head = TypeVar("Head", bound=ManifestHead)

_log = logging.getLogger("seeonce.cache")


@dataclass(slots=True)
class Transferred:
    """What was transferred. ``num_there`` entries were there already.

    ``missing`` has a line for each recording that could not go.
    """

    recordings: list[str] = field(default_factory=list)
    num_entries: int = 0
    num_bytes: int = 0
    num_there: int = 0
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False


class Pace:
    """Limits how many bytes a second threads take together; None is no limit."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s, self._lock, self._free_s = bytes_per_s, threading.Lock(), 0.0

    def __call__(self, num_bytes: int) -> None:
        """Wait until so many bytes may go."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            begin_s = max(self._free_s, time.monotonic())
            self._free_s = begin_s + num_bytes / self._bytes_per_s
        time.sleep(max(0.0, begin_s - time.monotonic()))


def privacy_line(address: str) -> str:
    """Say where pictures go, before the first byte does."""
    return f"Pictures of screens go to {address}: whoever can read it can tell what was on the screen."


def push(
    store: Store,
    bucket: BucketStore,
    recording: str | None,
    listener: Listener,
    *,
    bytes_per_s: float | None = None,
    read_data: bool = False,
) -> Transferred:
    """Put the entries of a recording, or of all, into a bucket, then its manifests.

    A recording of which entries are missing here gets no manifest there. With ``read_data`` what is there
    already is read and replaced when it is damaged. On Ctrl-C ``interrupted`` is set.

    Raises:
        NotEncodedError: no such recording.
        InputError: several fit.
        StoreError: the bucket or the disk refuses.
    """
    report, pace = Transferred(interrupted=True), Pace(bytes_per_s)
    refs = _chosen(list_manifests(store.home), recording, f"in the store {store.path}")
    with suppress(KeyboardInterrupt), held_lease(store, "store push"):
        keys = list(dict.fromkeys(key for ref in refs for key in ref.keys))
        there = set() if read_data else bucket.existing(keys)
        report.num_there = len(there)

        def send(keys: Sequence[EntryKey]) -> dict[EntryKey, int]:
            return {key: _send(store, bucket, key, pace, read_data) for key in keys}

        gone = _transfer([(key,) for key in keys if key not in there], send, report, listener, "push")
        for ref in refs:
            if _is_whole(ref.recording.id, set(ref.keys), gone, "here", report):
                bucket.write_manifest(read_manifest(ref.path))
                require_entries(bucket, ref.keys, send)
                report.recordings.append(ref.recording.id)
        report.interrupted = False
    return report


def _send(store: Store, bucket: BucketStore, key: EntryKey, pace: Pace, read_data: bool) -> int:
    """Put one entry; return its bytes, 0 when it need not go, -1 when it is not here."""
    if read_data and bucket.check(key) is None:
        return 0
    info = store.entry_info(key)
    if info is None:
        return -1
    chunk = np.empty(info.nbytes + CHECKSUM_BYTES, np.uint8)  # fresh: obstore may keep it without a copy
    found = store.read_entry(key, chunk)
    if found is None or found[0].nbytes != info.nbytes:
        return -1
    chunk[info.nbytes :] = checksum(found[0].crc32c)
    pace(chunk.nbytes)
    bucket.put_entry(found[0], chunk)
    return info.nbytes


def pull(
    store: Store,
    bucket: BucketStore,
    recording: str | None,
    listener: Listener,
    *,
    bytes_per_s: float | None = None,
) -> Transferred:
    """Copy the entries of a recording, or of all, from a bucket, then its manifests, unless ours are newer.

    Every byte is checked by BLAKE3. On Ctrl-C ``interrupted`` is set.

    Raises:
        NotEncodedError: the bucket has no such recording.
        InputError: several fit.
        StoreError: the bucket or the disk refuses, or SEEONCE_STORE_MAX is reached.
    """
    report, pace = Transferred(interrupted=True), Pace(bytes_per_s)
    limit, lock = StoreLimit.of(store), threading.Lock()
    heads = _chosen(bucket.list_manifests(), recording, f"in {bucket.objects.address}")
    with suppress(KeyboardInterrupt), held_lease(store, "store pull"):
        manifests = [bucket.read_manifest(head) for head in heads]
        keys = list(dict.fromkeys(frame.key for manifest in manifests for frame in manifest.frames))
        lacking = [key for key in keys if not store.has(key)]
        report.num_there = len(keys) - len(lacking)

        def fetch(keys: Sequence[EntryKey]) -> dict[EntryKey, int]:
            sizes = dict.fromkeys(keys, -1)
            with store.batch() as batch:
                for key in keys:
                    try:
                        if (info := bucket.read_info(key)) is None:
                            continue
                        with lock:
                            limit.take(info.nbytes)
                        batch.copy(info, _paced(bucket.open_chunk(info), pace))
                        sizes[key] = info.nbytes
                    except DamagedError as damage:
                        if bucket.check(key) is None:
                            raise StoreError(
                                f"entry {key} is whole in {bucket.objects.address}, and was not when it "
                                f"lay here: {damage}; run the same command again to continue; check the disk "
                                "if it says so again"
                            ) from None
                        _log.warning("entry %s in %s is damaged: %s", key, bucket.objects.address, damage)
                batch.commit()
            return sizes

        size = max(1, min(_BATCH_ENTRIES, len(lacking) // (2 * NUM_TRANSFERS)))
        batches = [lacking[start : start + size] for start in range(0, len(lacking), size)]
        gone = _transfer(batches, fetch, report, listener, "pull")
        for manifest in manifests:
            id_ = manifest.recording.id
            if _is_whole(id_, {frame.key for frame in manifest.frames}, gone, bucket.objects.address, report):
                _keep_if_newer(store, manifest)
                report.recordings.append(id_)
        report.interrupted = False
    return report


def _chosen(heads: Sequence[Head], recording: str | None, where: str) -> Sequence[Head]:
    """Return the manifests of a recording, or all of them."""
    found = None if recording is None else matching_recording(recording, (head.recording for head in heads))
    chosen = [head for head in heads if recording is None or head.recording.id == found]
    if not chosen:
        what = "nothing" if recording is None else f"no recording {recording!r}"
        raise NotEncodedError(f"there is {what} {where}")
    return chosen


def _transfer(
    batches: Sequence[Sequence[EntryKey]],
    work: Callable[[Sequence[EntryKey]], dict[EntryKey, int]],
    report: Transferred,
    listener: Listener,
    what: str,
) -> set[EntryKey]:
    """Do the work on each batch, several at once; return the keys of which there was no whole entry."""
    gone: set[EntryKey] = set()
    num_done, num_all = 0, sum(map(len, batches))
    listener.show(what, "entry", num_done, num_all)
    threads = ThreadPoolExecutor(NUM_TRANSFERS, "seeonce-transfer")
    try:
        for done in as_completed([threads.submit(work, batch) for batch in batches]):
            for key, num_bytes in done.result().items():
                if num_bytes < 0:
                    gone.add(key)
                report.num_there += num_bytes == 0
                report.num_entries += num_bytes > 0
                report.num_bytes += max(0, num_bytes)
                num_done += 1
                listener.show(what, "entry", num_done, num_all)
    finally:
        threads.shutdown(cancel_futures=True)
    return gone


def _is_whole(
    recording: str, keys: set[EntryKey], gone: set[EntryKey], where: str, report: Transferred
) -> bool:
    if lacking := keys & gone:
        report.missing.append(
            f"{recording}: {len(lacking)} of {counted(len(keys), 'entry')} missing or damaged {where}, so "
            "its manifest does not go over: run seeonce encode again"
        )
    return not lacking


def _paced(stream: Stream, pace: Pace) -> Read:
    def read(max_bytes: int) -> NDArray[np.uint8]:
        part = stream.read(max_bytes)
        pace(part.nbytes)
        return part

    return read


def _keep_if_newer(store: Store, manifest: Manifest) -> None:
    path = manifest_path(store.home, manifest.recording.id, manifest.encoder.encoder_id)
    with suppress(StoreError):
        if path.exists() and read_manifest(path).created_at >= manifest.created_at:
            return
    store.write_manifest(manifest)


class ReadThrough:
    """A bucket that is asked for what a local store misses; for several threads.

    When it cannot be used it says so once, and the work goes on with what is there.
    """

    def __init__(self, address: str, named_by: str = REMOTE) -> None:
        """Take the address; it is opened when it is first asked. A warning says what named it.

        Raises:
            InputError: it is no address.
        """
        self._address, self._lock = check_address(address), threading.Lock()
        self._named_by = named_by
        self._bucket: BucketStore | None = None
        self._warned = False

    def ask(self, what: Callable[[BucketStore], Answer]) -> Answer | None:
        """Return what the bucket answers, None when it cannot be used."""
        try:
            with self._lock:
                if self._warned:
                    return None
                if self._bucket is None:
                    self._bucket = BucketStore.open(self._address, patient=False)
            return what(self._bucket)
        except (StoreError, NotEncodedError) as error:
            with self._lock:
                if not self._warned:
                    _log.warning(
                        "%s is left aside, the work goes on with what is here: %s", self._named_by, error
                    )
                self._warned = True
        return None

    def features(self, store: Store, key: EntryKey) -> Features | None:
        """Return the features of an entry that is in the bucket, and keep a checked copy if there is room."""
        return self.ask(lambda bucket: _read_and_keep(store, bucket, key))


def _read_and_keep(store: Store, bucket: BucketStore, key: EntryKey) -> Features | None:
    """Copy an entry to the disk as it comes: that takes as long as its way here."""
    problem = None
    try:
        if (info := bucket.read_info(key)) is None:
            return None
        if store.writable and StoreLimit.of(store).fits(info.nbytes, 1):
            payload = np.empty(info.nbytes, np.uint8)
            # What a power cut takes of a copy is a miss, and read again.
            with replace(store, durability=Durability.none).batch() as batch:
                batch.copy(info, bucket.open_chunk(info).read, payload)
                batch.commit()
            return features_of(payload, info)
    except UnreachableError:
        raise
    except StoreError as error:
        problem = error
    features = bucket.read(key)  # which says so when the fault lies there
    if features is not None and problem is not None:
        _log.warning("no copy is kept of entry %s: %s", key, problem)
    return features


def with_remote(store: Store, environ: Mapping[str, str] = os.environ, address: str = "") -> Store:
    """Return the store, which reads through to a bucket, by default that of SEEONCE_REMOTE if that is set.

    Raises:
        InputError: it is no address.
    """
    bucket = ReadThrough(address, "--from") if address else None
    if bucket is None and (remote := environ.get(REMOTE, "").strip()):
        bucket = ReadThrough(remote)
    return store if bucket is None else replace(store, elsewhere=partial(bucket.features, store))


def fetch_manifests(home: Home, recording: str | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Keep the manifests of a recording that only the bucket of SEEONCE_REMOTE has; say whether it had any.

    Without a name it is the newest recording.

    Raises:
        InputError: several recordings fit, or SEEONCE_REMOTE is no address.
    """
    address = environ.get(REMOTE, "").strip()
    if not address:
        return False

    def fetch(bucket: BucketStore) -> bool:
        heads = bucket.list_manifests()
        if recording is None and heads:
            id_: str | None = heads[0].recording.id
        else:
            id_ = matching_recording(recording or "", (head.recording for head in heads))
        chosen = [head for head in heads if head.recording.id == id_]
        for head in chosen:
            Store.open(home).write_manifest(bucket.read_manifest(head))
        return bool(chosen)

    return bool(ReadThrough(address).ask(fetch))
