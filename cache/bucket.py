"""A store in a bucket: the same entries and manifests, committed by puts that only create.

The chunk comes first, then ``zarr.json``, which commits. Any writer may finish what another began.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache import bucket_manifests
from cache.base.canonical_json import canonical, parse, record_to_json
from cache.base.errors import NotEncodedError, StoreError
from cache.base.files import Durability
from cache.commit import new_entry, with_digests
from cache.entry import (
    CHECKSUM_BYTES,
    CHUNK_NAME,
    MAX_METADATA_BYTES,
    METADATA_NAME,
    DamagedError,
    EntryInfo,
    Features,
    Provenance,
    checksum,
    decode_entry,
    encode_entry,
)
from cache.key import EncoderSpec, EntryKey, PixelDigest
from cache.layout import (
    FRAMES,
    MAX_STORE_FILE_BYTES,
    STORE_FILE,
    TRASH,
    group_name,
    new_store_file,
    store_id_of,
)
from cache.manifest import Manifest, ManifestHead
from cache.objects import Objects, Stream
from cache.reading import check_blake3, check_length, check_payload, features_of, payload_buffer

NUM_TRANSFERS = 8
_MAX_ROUNDS = 8  # each is lost to another writer, a collection or damage of its own
_MAX_ATTRIBUTE_BYTES = 1500  # S3 takes 2 KB in all
_LIST_FROM = 200  # keys: a list of all costs what so many looks cost
_ATTRIBUTE = "seeonce"
_WAIT_S, _MAX_WAIT_S = 0.2, 0.8  # for the writer of a chunk that nobody vouches for

_log = logging.getLogger("seeonce.cache")


@dataclass(frozen=True, slots=True)
class BucketStore:
    """An open store in a bucket. It has no state but its address; threads and machines share it."""

    objects: Objects
    store_id: str
    writable: bool

    @classmethod
    def open(
        cls, address: str, *, create: bool = False, writable: bool = False, patient: bool = True
    ) -> Self:
        """Open the store at an address, ``writable`` or for reading; ``create`` makes one if there is none.

        The ``patient`` try for minutes to reach it, others for seconds.

        Raises:
            InputError: it is no address.
            NotEncodedError: there is none, and ``create`` is not set.
            StoreError: the bucket cannot be used; or it is to be written, and is public, or its server
                ignores conditions.
        """
        objects = Objects.open(address, create=create, patient=patient)
        raw = objects.get(STORE_FILE, MAX_STORE_FILE_BYTES)
        if raw is None and create:
            objects.put_new(STORE_FILE, new_store_file())
            raw = objects.get(STORE_FILE, MAX_STORE_FILE_BYTES)
        if raw is None:
            raise NotEncodedError(
                f"there is no store at {objects.address}: seeonce store push {objects.address} makes one"
            )
        store_id = store_id_of(raw, f"{objects.address}/{STORE_FILE}")
        if create or writable:
            # The same bytes again: a server that obeys the condition refuses them; one that does not changes
            # nothing.
            if objects.put_new(STORE_FILE, raw) is not None:
                raise StoreError(
                    f"the server of {objects.address} ignores conditional puts (If-None-Match: *), so "
                    "writers would overwrite each other: use another server"
                )
            if objects.is_public(STORE_FILE):
                raise StoreError(
                    f"{objects.address} can be read by anyone without credentials: make the bucket private, "
                    "or give another"
                )
        return cls(objects, store_id, create or writable)

    @property
    def durability(self) -> Durability:
        """What a server acknowledges survives a power cut there; several entries go together."""
        return Durability.batch

    def has(self, key: EntryKey) -> bool:
        """Say whether the entry is there: metadata and length are checked, the payload is not."""
        return self.entry_info(key) is not None

    def exists(self, key: EntryKey) -> bool:
        """Say whether there is an entry of that name, right or wrong: one look."""
        return self.objects.head(metadata_name(key)) is not None

    def existing(self, keys: Iterable[EntryKey]) -> set[EntryKey]:
        """Return those keys that have an entry: by a HEAD for each if few, else by listing their groups."""
        groups: dict[str, set[EntryKey]] = {}
        for key in keys:
            groups.setdefault(group_name(key), set()).add(key)
        wanted = [key for group in groups.values() for key in group]
        with ThreadPoolExecutor(NUM_TRANSFERS * 4) as threads:
            if len(wanted) < _LIST_FROM:
                return {
                    key for key, there in zip(wanted, threads.map(self.exists, wanted), strict=True) if there
                }
            found = threads.map(lambda name: groups[name] & self.keys(name), groups)
            return {key for keys in found for key in keys}

    def keys(self, group: str) -> set[EntryKey]:
        """Return the keys of the entries of one of the 256 groups, by a list."""
        ends = f"/{METADATA_NAME}"
        names = (found["path"] for found in self.objects.list(f"{FRAMES}/{group}"))
        found = (key_of_folder(name.removesuffix(ends)) for name in names if name.endswith(ends))
        return {key for key in found if key is not None}

    def entry_info(self, key: EntryKey) -> EntryInfo | None:
        """Return what an entry says about itself; None when it is missing or wrong.

        Raises:
            StoreError: the bucket cannot be read.
        """
        try:
            if (info := self.read_info(key)) is None:
                return None
            self._check_length(info)
        except DamagedError as damage:
            _log.warning("entry %s in %s is damaged: %s", key, self.objects.address, damage)
            return None
        return info

    def _check_length(self, info: EntryInfo) -> None:
        found = self.objects.head(chunk_name(info.key))
        check_length(None if found is None else found["size"], info.nbytes)

    def read(self, key: EntryKey, buffer: NDArray[np.uint8] | None = None) -> Features | None:
        """Return the features of an entry, every byte checked; None when it is missing or wrong.

        They lie in ``buffer`` (contiguous uint8, to be reused) when it is large enough. Nothing is
        written or moved.

        Raises:
            StoreError: the bucket cannot be read.
        """
        found = self.read_entry(key, buffer)
        return None if found is None else found[1]

    def read_entry(
        self, key: EntryKey, buffer: NDArray[np.uint8] | None = None
    ) -> tuple[EntryInfo, Features] | None:
        """Return an entry whole, as ``read`` does."""
        problem = ""
        for _ in range(2):  # a writer may have replaced the one or the other between our two looks
            try:
                if (info := self.read_info(key)) is None:
                    return None
                payload = payload_buffer(info, buffer)
                check_payload(self.open_chunk(info).readinto, info.nbytes, info.crc32c, payload)
                return info, features_of(payload, info)
            except DamagedError as damage:
                problem = str(damage)
        _log.warning("entry %s in %s is damaged: %s", key, self.objects.address, problem)
        return None

    def check(self, key: EntryKey, *, payload: bool = True) -> str | None:
        """Check an entry, every byte by BLAKE3 as well; say what is wrong, None when all is right.

        Raises:
            StoreError: the bucket cannot be read.
        """
        try:
            if (info := self.read_info(key)) is None:
                return "there is no such entry"
            if not payload:
                self._check_length(info)
                return None
            hasher = blake3()
            check_payload(self.open_chunk(info).readinto, info.nbytes, info.crc32c, None, hasher)
            check_blake3(hasher, info)
        except DamagedError as damage:
            return str(damage)
        return None

    def batch(self) -> "BucketBatch":
        """Return a batch, to be used in ``with``: its entries are put while others are made.

        Raises:
            StoreError: the store was opened for reading.
        """
        if not self.writable:
            raise StoreError(f"{self.objects.address} was opened for reading only")
        return BucketBatch(self)

    def make_durable(self, keys: Iterable[EntryKey]) -> None:
        """Do nothing: what a server shows is as durable as it gets."""

    def put_entry(self, info: EntryInfo, chunk: NDArray[np.uint8]) -> None:
        """Commit an entry: payload and checksum as in ``c.0.0.0``, ``info`` with their digests.

        When another writer was first, its entry stays if it is whole. When this returns there is a whole
        entry under the key; killed before, it leaves what any writer may finish.

        Raises:
            StoreError: the bucket cannot be written, or others change this entry all the time.
        """
        name = chunk_name(info.key)
        for number in range(_MAX_ROUNDS):
            ours, is_committed = info, False
            etag = self.objects.put_new(name, chunk, _attributes(info))
            if etag is None:
                found = self._entry_of_chunk(info, wait_s=number * _WAIT_S)
                if found is None:
                    continue
                ours, etag, is_committed = found
            if is_committed:
                return
            if not self._put_metadata(ours):
                continue
            there = self.objects.head(name)
            if there is not None and (there["e_tag"] or "") == etag:
                return
        raise StoreError(
            f"{self.objects.address}: entry {info.key} changed {_MAX_ROUNDS} times while it was "
            "written: run the same command again, and look who else writes there"
        )

    def _put_metadata(self, info: EntryInfo) -> bool:
        """Put ``zarr.json``; False when one lies there that tells of other bytes, which then is deleted."""
        if self.objects.put_new(metadata_name(info.key), encode_entry(info)) is not None:
            return True
        there = self._info_or_none(info.key)
        if there is not None and (there.crc32c, there.blake3) == (info.crc32c, info.blake3):
            return True
        self.objects.delete(metadata_name(info.key))
        return False

    def _entry_of_chunk(self, info: EntryInfo, wait_s: float) -> tuple[EntryInfo, str, bool] | None:
        """Read a chunk that is there: what it is an entry of, its ETag, and whether that is committed.

        One that nobody vouches for is deleted, and None returned; so it is when there is none any more.
        """
        name = chunk_name(info.key)
        there, stream = self._info_or_none(info.key), self.objects.stream(name)
        if stream is None:
            return None
        try:
            check_length(stream.size, info.nbytes)
            hasher = blake3()
            found = check_payload(stream.readinto, info.nbytes, None, None, hasher), hasher.digest()
            if there is not None and (there.crc32c, there.blake3) == found:
                return there, stream.etag, True
            if (info.crc32c, info.blake3) == found:
                return info, stream.etag, False
            if there is None and (theirs := _vouched(stream, info, *found)) is not None:
                return theirs, stream.etag, False
            if there is None and wait_s < _MAX_WAIT_S:  # its writer may be about to commit it
                time.sleep(wait_s * random.random())  # noqa: S311
                return None
            problem = "its bytes are others than its metadata tells of"
        except DamagedError as damage:
            problem = str(damage)
        _log.warning("%s: %s is put again: %s", self.objects.address, name, problem)
        self.objects.delete(name)
        return None

    def read_info(self, key: EntryKey) -> EntryInfo | None:
        """Return what the metadata of an entry say, None when there are none; the chunk is not looked at.

        Raises:
            DamagedError: they are wrong.
            StoreError: the bucket cannot be read.
        """
        raw = self.objects.get(metadata_name(key), MAX_METADATA_BYTES)
        return None if raw is None else decode_entry(raw, key)

    def _info_or_none(self, key: EntryKey) -> EntryInfo | None:
        try:
            return self.read_info(key)
        except DamagedError:
            return None

    def open_chunk(self, info: EntryInfo) -> Stream:
        """Begin to read the chunk of an entry, whose bytes are not checked yet.

        Raises:
            DamagedError: it is missing, or of another length.
            StoreError: the bucket cannot be read.
        """
        stream = self.objects.stream(chunk_name(info.key))
        if stream is None:
            raise DamagedError(f"{CHUNK_NAME} is missing")
        check_length(stream.size, info.nbytes)
        return stream

    def list_manifests(self, on_problem: Callable[[str], None] = _log.warning) -> list[ManifestHead]:
        """Return the newest manifest of each recording and encoder, newest first, without their frames."""
        return bucket_manifests.list_manifests(self.objects, on_problem)

    def read_manifest(self, head: ManifestHead) -> Manifest:
        """Read a manifest with all its frames.

        Raises:
            StoreError: it is missing, damaged or of a newer format.
        """
        return bucket_manifests.read_manifest(self.objects, head)

    def write_manifest(self, manifest: Manifest) -> None:
        """Put a manifest beside those that are there; by its time it is the newest, or not.

        Raises:
            ValueError: the manifest has problems.
            StoreError: a bad recording id, or the bucket cannot be written.
        """
        bucket_manifests.write_manifest(self.objects, manifest)


def metadata_name(key: EntryKey) -> str:
    """Return the name of an entry's ``zarr.json``."""
    return f"{FRAMES}/{group_name(key)}/{key.hex}/{METADATA_NAME}"


def key_of_folder(name: str) -> EntryKey | None:
    """Return the key whose folder, or marker, has that name; None for another's."""
    try:
        return EntryKey.from_hex(name.rpartition("/")[2])
    except ValueError:
        return None


def chunk_name(key: EntryKey) -> str:
    """Return the name of an entry's chunk."""
    return f"{FRAMES}/{group_name(key)}/{key.hex}/{CHUNK_NAME}"


def marker_name(key: EntryKey) -> str:
    """Return the name of the marker by which a collection says that it will remove an entry."""
    return f"{TRASH}/{group_name(key)}/{key.hex}"


def chunk_of(features: Features, info: EntryInfo) -> tuple[EntryInfo, NDArray[np.uint8]]:
    """Return a copy of the payload with its checksum, and ``info`` with its digests.

    Raises:
        DamagedError: ``info`` has others.
    """
    payload = features.array.reshape(-1).view(np.uint8)
    chunk = np.empty(payload.nbytes + CHECKSUM_BYTES, np.uint8)
    chunk[: payload.nbytes] = payload
    crc32c = int(google_crc32c.value(chunk[: payload.nbytes]))
    chunk[payload.nbytes :] = checksum(crc32c)
    digest = blake3(chunk[: payload.nbytes].data, max_threads=blake3.AUTO).digest()
    return with_digests(info, crc32c, digest), chunk


class BucketBatch:
    """Entries on their way into a bucket: each is put as soon as it is added; to be used in ``with``.

    After an error none of the entries of the batch is acknowledged; those that were put stay.
    """

    __slots__ = ("_bucket", "_num_bytes", "_putting", "_threads")

    def __init__(self, bucket: BucketStore) -> None:
        self._bucket = bucket
        self._threads = ThreadPoolExecutor(NUM_TRANSFERS, "seeonce-put")
        self._putting: list[tuple[EntryKey, Future[None]]] = []
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._threads.shutdown(cancel_futures=True)

    @property
    def num_entries(self) -> int:
        """How many entries wait to be committed."""
        return len(self._putting)

    @property
    def num_bytes(self) -> int:
        """Bytes of their payloads, in memory until they are put."""
        return self._num_bytes

    def add(
        self, pixels: PixelDigest, spec: EncoderSpec, features: Features, provenance: Provenance
    ) -> EntryKey:
        """Begin to put an entry; until this returns the features must not change, afterwards they may go.

        Raises:
            ValueError: the features do not match the encoder's layers, hidden size or merge size.
        """
        info, chunk = chunk_of(features, new_entry(pixels, spec, features, provenance))
        self._putting.append((info.key, self._threads.submit(self._bucket.put_entry, info, chunk)))
        self._num_bytes += features.nbytes
        return info.key

    def commit(self) -> tuple[EntryKey, ...]:
        """Wait until all entries are committed; acknowledge them by returning their keys.

        Raises:
            StoreError: one could not be written; none is acknowledged.
        """
        putting, self._putting, self._num_bytes = self._putting, [], 0
        for _, done in putting:
            done.result()
        return tuple(key for key, _ in putting)


def _attributes(info: EntryInfo) -> dict[str, str]:
    """Return what a chunk carries beside its bytes, so that another writer can finish its entry."""
    text = canonical(
        {
            "blake3": info.blake3.hex(),
            "created_at": info.created_at,
            "key": info.key.hex,
            "provenance": record_to_json(info.provenance),
        }
    )
    return {_ATTRIBUTE: text.decode("ascii")} if len(text) <= _MAX_ATTRIBUTE_BYTES else {}


def _vouched(stream: Stream, info: EntryInfo, crc32c: int, digest: bytes) -> EntryInfo | None:
    """Return the entry of which a chunk's attributes say that it is; None when they do not."""
    try:
        document = parse(stream.attributes.get(_ATTRIBUTE, "").encode(), "attributes")
        if (document.text("key"), document.text("blake3")) != (info.key.hex, digest.hex()):
            return None
        return replace(
            info,
            crc32c=crc32c,
            blake3=digest,
            created_at=document.text("created_at"),
            provenance=document.child("provenance").record(Provenance, exactly=True),
        )
    except StoreError:  # a file has none, and some servers may lose them
        return None
