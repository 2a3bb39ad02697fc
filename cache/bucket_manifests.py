"""Manifests in a bucket: parts with the frames, named by their bytes, and a small head that names the parts.

Nothing is replaced. Of the heads of one recording and encoder the newest counts.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TypeVar

from blake3 import blake3

from cache.base.canonical_json import (
    SEAL_FIELD,
    UNSEALED,
    JsonObject,
    JsonValue,
    record_to_json,
    seal,
    unseal,
)
from cache.base.errors import StoreError
from cache.key import EncoderSpec, EntryKey
from cache.layout import RECORDINGS
from cache.manifest import (
    MANIFEST_FORMAT,
    FrameEntry,
    Manifest,
    ManifestHead,
    RecordingInfo,
    SkippedFrame,
    check_recording_id,
)
from cache.objects import Objects

PART_FRAMES = 25_000  # about 8 MB of JSON, 100 MB while it is read
_MAX_PART_BYTES = 128 << 20
_MAX_HEAD_BYTES = 16 << 20
_NUM_READERS = 16
_PART = re.compile(r"part\.\d{8}T\d{6}Z\.[0-9a-f]{64}\.json")
_HEAD = re.compile(r"manifest\.(\d{8}T\d{6}Z)\.([0-9a-f]{16})\.json")

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the frames of a manifest, in their order, and of the skipped ones."""

    frames: tuple[FrameEntry, ...]
    skipped: tuple[SkippedFrame, ...]


def write_manifest(objects: Objects, manifest: Manifest) -> str:
    """Put a manifest; return the name of its head.

    Raises:
        ValueError: the manifest has problems.
        StoreError: a bad recording id, or the bucket cannot be written.
    """
    if problems := manifest.problems():
        raise ValueError(f"manifest of {manifest.recording.id}: {problems[0]} ({len(problems)} problems)")
    return write_rows(
        objects,
        manifest.recording,
        manifest.encoder,
        parts_of(manifest.frames, manifest.skipped),
        complete=manifest.complete,
        created_at=manifest.created_at,
    )


def parts_of(frames: Iterable[FrameEntry], skipped: Iterable[SkippedFrame] = ()) -> Iterator[Part]:
    """Cut rows into parts, a part at a time: neither needs to be in memory."""
    cut = zip_longest(_cut(frames), _cut(skipped), fillvalue=())
    return (Part(some, left_out) for some, left_out in cut)


def _cut(rows: Iterable[Row]) -> Iterator[tuple[Row, ...]]:
    rows = iter(rows)
    return iter(lambda: tuple(islice(rows, PART_FRAMES)), ())


def write_rows(
    objects: Objects,
    recording: RecordingInfo,
    encoder: EncoderSpec,
    parts: Iterable[Part],
    *,
    complete: bool,
    created_at: str,
    folder: str = "",
) -> str:
    """Put a manifest part by part, then its head; return the name of that.

    By default into the folder of the recording and the encoder, where it counts.

    Raises:
        ValueError: a frame's index is not greater than the one before it.
        StoreError: a bad recording id, or the bucket cannot be written.
    """
    check_recording_id(recording.id)
    folder = folder or f"{RECORDINGS}/{recording.id}/{encoder.encoder_id.hex}"
    time = datetime.fromisoformat(created_at).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    named: list[JsonValue] = []
    num_frames = num_skipped = 0
    previous = -1
    for part in parts:
        for frame in part.frames:
            if frame.index <= previous:
                raise ValueError(f"manifest of {recording.id}: frame {frame.index} comes after {previous}")
            previous = frame.index
        raw = seal({**record_to_json(part), "format": MANIFEST_FORMAT, SEAL_FIELD: UNSEALED})
        # The time keeps a part from being one of an older manifest, which a collection may be about to take.
        part_name = f"part.{time}.{blake3(raw).hexdigest()}.json"
        objects.put_new(f"{folder}/{part_name}", raw)
        named.append({"name": part_name, "num_frames": len(part.frames)})
        num_frames, num_skipped = num_frames + len(part.frames), num_skipped + len(part.skipped)
    head = seal(
        {
            "format": MANIFEST_FORMAT,
            "recording": record_to_json(recording),
            "encoder": record_to_json(encoder),
            "encoder_id": encoder.encoder_id.hex,
            "num_frames": num_frames,
            "num_skipped": num_skipped,
            "complete": complete,
            "created_at": created_at,
            "parts": named,
            SEAL_FIELD: UNSEALED,
        }
    )
    name = f"{folder}/manifest.{time}.{blake3(head).hexdigest(8)}.json"
    objects.put_new(name, head)
    return name


def list_manifests(objects: Objects, on_problem: Callable[[str], None]) -> list[ManifestHead]:
    """Return the newest manifest of each recording and encoder, newest first.

    A head that cannot be read is named to ``on_problem``, and the one before it counts.
    """
    names: dict[str, list[str]] = {}
    for name in head_names(objects):
        names.setdefault(name.rpartition("/")[0], []).append(name)

    def newest(of_one: list[str]) -> tuple[ManifestHead | None, list[str]]:
        problems: list[str] = []
        for name in sorted(of_one, reverse=True):
            try:
                return read_head(objects, name), problems
            except StoreError as error:
                problems.append(str(error))
        return None, problems

    heads = []
    with ThreadPoolExecutor(_NUM_READERS) as threads:
        for head, problems in threads.map(newest, names.values()):
            for line in problems:
                on_problem(line)
            if head is not None:
                heads.append(head)
    return sorted(heads, key=lambda head: (head.created_at, head.path), reverse=True)


def head_names(objects: Objects, folder: str = RECORDINGS) -> Iterator[str]:
    """Yield the names of all heads below a folder, old and new, readable or not."""
    for found in objects.list(folder):
        if _HEAD.fullmatch(found["path"].rpartition("/")[2]):
            yield found["path"]


def read_head(objects: Objects, name: str) -> ManifestHead:
    """Read a head.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    return _head(name, _head_document(objects, name))


def _head_document(objects: Objects, name: str) -> JsonObject:
    raw = objects.get(name, _MAX_HEAD_BYTES)
    if raw is None:
        raise StoreError(f"{objects.address}: manifest {name} is gone")
    document = unseal(raw, f"{objects.address}: manifest {name}")
    if (found := document.integer("format")) != MANIFEST_FORMAT:
        raise StoreError(f"{name} has format {found}, this seeonce reads {MANIFEST_FORMAT}: upgrade seeonce")
    return document


def _head(name: str, document: JsonObject) -> ManifestHead:
    head = ManifestHead(
        path=Path(name),
        recording=document.child("recording").record(RecordingInfo),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        created_at=document.text("created_at"),
        num_frames=document.integer("num_frames"),
        num_skipped=document.integer("num_skipped"),
        complete=document.flag("complete"),
    )
    if name.split("/")[1:3] != [head.recording.id, head.encoder_id.hex]:
        raise StoreError(f"manifest {name} is that of recording {head.recording.id}, {head.encoder_id}")
    return head


def read_parts(objects: Objects, name: str) -> Iterator[Part]:
    """Yield the parts of a manifest one by one; ``name`` is that of its head.

    Raises:
        StoreError: the head or a part is missing, damaged or of a newer format.
    """
    return (document.record(Part) for document in _part_documents(objects, name))


def read_keys(objects: Objects, name: str) -> Iterator[EntryKey]:
    """Yield the keys of a manifest's frames, in half the time of ``read_parts``.

    Raises:
        StoreError: as ``read_parts``.
    """
    for document in _part_documents(objects, name):
        for row in document.children("frames"):
            try:
                yield EntryKey.from_hex(row.text("key"))
            except ValueError as error:
                raise StoreError(f"{objects.address}: a part of {name}: {error}") from None


def _part_documents(objects: Objects, name: str) -> Iterator[JsonObject]:
    for part_name in part_names(objects, name):
        raw = objects.get(part_name, _MAX_PART_BYTES)
        what = f"{objects.address}: {part_name}"
        if raw is None or blake3(raw).hexdigest() != part_name.split(".")[-2]:
            raise StoreError(f"{what} is {'missing' if raw is None else 'damaged'}: push the recording again")
        yield unseal(raw, what)


def part_names(objects: Objects, name: str) -> list[str]:
    """Return the names of the parts of a manifest; ``name`` is that of its head.

    Raises:
        StoreError: the head cannot be read.
    """
    names = [row.text("name") for row in _head_document(objects, name).children("parts")]
    if wrong := [part for part in names if not _PART.fullmatch(part)]:
        raise StoreError(f"{objects.address}: manifest {name} names {wrong[0][:80]!r} as a part")
    return [f"{name.rpartition('/')[0]}/{part}" for part in names]


def read_manifest(objects: Objects, head: ManifestHead) -> Manifest:
    """Read a manifest with all its frames.

    Raises:
        StoreError: the head or a part is missing, damaged or of a newer format.
    """
    parts = list(read_parts(objects, str(head.path)))
    return Manifest(
        recording=head.recording,
        encoder=head.encoder,
        frames=tuple(chain.from_iterable(part.frames for part in parts)),
        skipped=tuple(chain.from_iterable(part.skipped for part in parts)),
        complete=head.complete,
        created_at=head.created_at,
    )
