"""What pass one leaves of a recording under one encoder: every frame's index, time, source and key."""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cache.base.canonical_json import (
    SEAL_FIELD,
    UNSEALED,
    JsonObject,
    JsonValue,
    record_to_json,
    seal,
    unseal,
)
from cache.base.errors import InputError, StoreError, disk_error
from cache.base.files import Durability, Folder
from cache.base.home import Home
from cache.base.text import user_path
from cache.entry import num_merged_tokens
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest, entry_key
from cache.layout import RECORDINGS, names_in

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 1
MAX_MANIFEST_BYTES = 512 << 20
_MAX_ID_BYTES = 200
_TRIES = 4


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One encoded frame. ``source`` is a file path, or a place in one such as "video.mp4#pts=123".

    ``neighbour`` is the index of an earlier frame that looks much the same and whose picture and entry
    this frame uses: ``pixels`` and what follows are that one's. None, as a rule: it has its own.
    """

    index: int
    timestamp_s: float
    source: str
    pixels: PixelDigest
    key: EntryKey
    width: int
    height: int
    grid_thw: tuple[int, int, int]
    num_tokens: int
    neighbour: int | None = None


@dataclass(frozen=True, slots=True)
class SkippedFrame:
    """One frame that could not be encoded, and why."""

    index: int
    timestamp_s: float
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class RecordingInfo:
    """Where the frames came from, and how they were selected, so that they can be found again.

    ``captured_at`` is ISO 8601, or empty when unknown; ``every_s``, ``limit`` and ``scene_change``
    (0 to 1) are None when they did not narrow the selection.
    """

    id: str
    name: str
    kind: str
    path: str
    captured_at: str
    num_frames: int
    every_s: float | None
    limit: int | None
    scene_change: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All frames of a recording under one encoder, in the order of the recording."""

    recording: RecordingInfo
    encoder: EncoderSpec
    frames: tuple[FrameEntry, ...]
    skipped: tuple[SkippedFrame, ...]
    complete: bool
    created_at: str

    def skipped_line(self) -> str:
        """Say which frames could not be encoded, and why the first could not; empty when none."""
        if not self.skipped:
            return ""
        return (
            f"warning: encode could not read {len(self.skipped)} of {self.recording.num_frames} frames of "
            f"{self.recording.id}, so they are left out: {self.skipped[0].reason}"
            f"{', …' if len(self.skipped) > 1 else ''}"
        )

    def problems(self) -> list[str]:
        """Say what does not fit together, one line each; empty when the manifest is sound."""
        encoder_id, merge_size = self.encoder.encoder_id, self.encoder.preprocessing.merge_size
        lines = []
        previous = -1
        own: dict[int, EntryKey] = {}
        for frame in self.frames:
            if frame.neighbour is None:
                own[frame.index] = frame.key
            elif own.get(frame.neighbour) != frame.key:
                lines.append(f"frame {frame.index}: no earlier frame {frame.neighbour} has its entry")
            if frame.index <= previous:
                lines.append(f"frame {frame.index} comes after frame {previous}")
            previous = frame.index
            if frame.key != entry_key(frame.pixels, encoder_id):
                lines.append(f"frame {frame.index}: key {frame.key} is not that of its pixels and encoder")
            try:
                expected = num_merged_tokens(frame.grid_thw, merge_size)
            except ValueError as error:
                lines.append(f"frame {frame.index}: {error}")
                continue
            if frame.num_tokens != expected:
                lines.append(
                    f"frame {frame.index}: grid_thw {frame.grid_thw} makes {expected} tokens, "
                    f"not {frame.num_tokens}"
                )
        return lines


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a manifest is of, without its frames. ``path`` is its file, or in a bucket its name there."""

    path: Path
    recording: RecordingInfo
    encoder: EncoderSpec
    created_at: str
    num_frames: int
    num_skipped: int
    complete: bool

    @property
    def encoder_id(self) -> EncoderId:
        """The encoder of all its frames."""
        return self.encoder.encoder_id


@dataclass(frozen=True, slots=True)
class ManifestRef(ManifestHead):
    """A manifest on disk, of its frames the keys alone, in their order."""

    keys: tuple[EntryKey, ...]

    def used_s(self) -> float:
        """Return when it was last encoded, described or verified, in POSIX seconds.

        Its folder is touched then.
        """
        created_s = 0.0
        with suppress(ValueError):
            created_s = datetime.fromisoformat(self.created_at).timestamp()
        with suppress(OSError):
            return max(created_s, self.path.parent.stat().st_mtime)
        return created_s


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """A recording under all its encoders, last used under any of them at ``used_s``, in POSIX seconds."""

    id: str
    manifests: tuple[ManifestRef, ...]
    keys: frozenset[EntryKey]
    used_s: float


@dataclass(frozen=True, slots=True)
class ManifestNames:
    """What manifests keep from being removed: entries, pictures, and what is remembered of files.

    ``places`` are paths of recordings and sources of frames, some in a file, as in ``video.mp4#pts=12``.
    """

    keys: frozenset[EntryKey] = frozenset()
    pixels: frozenset[PixelDigest] = frozenset()
    places: frozenset[str] = frozenset()

    def __or__(self, other: Self) -> Self:
        return type(self)(self.keys | other.keys, self.pixels | other.pixels, self.places | other.places)


_log = logging.getLogger("seeonce.cache")


def manifest_path(home: Home, recording_id: str, encoder_id: EncoderId) -> Path:
    """Return where the manifest of a recording under an encoder lies.

    Raises:
        StoreError: the id cannot be a folder's name.
    """
    check_recording_id(recording_id)
    return home.store / RECORDINGS / recording_id / encoder_id.hex / MANIFEST_FILE


def write_manifest(home: Home, manifest: Manifest, durability: Durability = Durability.batch) -> Path:
    """Write a manifest, replacing the one before it at once; return its path.

    Raises:
        ValueError: the manifest has problems.
        StoreError: a bad recording id, or the disk refuses.
    """
    if problems := manifest.problems():
        raise ValueError(f"manifest of {manifest.recording.id}: {problems[0]} ({len(problems)} problems)")
    path = manifest_path(home, manifest.recording.id, manifest.encoder.encoder_id)
    raw = seal(manifest_to_json(manifest))
    try:
        for tries_left in reversed(range(_TRIES)):
            try:
                _replace(home, manifest, raw, durability)
                break
            except FileNotFoundError:  # a forget of the same recording removed its folder, just made
                if not tries_left:
                    raise
    except OSError as error:
        raise disk_error(home.store, f"cannot write {path}", error) from error
    return path


def _replace(home: Home, manifest: Manifest, raw: bytes, durability: Durability) -> None:
    with (
        Folder.open(home.store / RECORDINGS) as recordings,
        _made(recordings, manifest.recording.id, durability) as recording,
        _made(recording, manifest.encoder.encoder_id.hex, durability) as folder,
    ):
        folder.replace(MANIFEST_FILE, raw, durability)


def manifest_to_json(manifest: Manifest) -> dict[str, JsonValue]:
    """Return the document of a manifest, ready to be sealed."""
    return {
        **record_to_json(manifest),
        "format": MANIFEST_FORMAT,
        "encoder_id": manifest.encoder.encoder_id.hex,
        SEAL_FIELD: UNSEALED,
    }


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; whether its keys fit its pixels is asked by ``Manifest.problems``.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    document = _read_document(path)
    return Manifest(
        recording=document.child("recording").record(RecordingInfo),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        frames=tuple(frame.record(FrameEntry) for frame in document.children("frames")),
        skipped=tuple(frame.record(SkippedFrame) for frame in document.children("skipped")),
        complete=document.flag("complete"),
        created_at=document.text("created_at"),
    )


def list_manifests(home: Home, on_problem: Callable[[str], None] = _log.warning) -> list[ManifestRef]:
    """Return all manifests, newest first; none without a store.

    ``on_problem`` receives a line for each that cannot be read.

    Raises:
        StoreError: a folder cannot be listed.
    """
    refs = []
    try:
        paths = manifest_files(home) if home.store.is_dir() else []
    except OSError as error:
        raise disk_error(home.store, f"cannot list {error.filename}", error) from error
    for path in paths:
        try:
            refs.append(_ref(path))
        except StoreError as error:
            on_problem(str(error))
    return sorted(refs, key=lambda ref: (ref.created_at, ref.path), reverse=True)


def manifest_files(home: Home) -> list[Path]:
    """Return where manifests lie, readable or not.

    Raises:
        OSError: a folder cannot be listed, so that there may be more.
    """
    return [
        path / MANIFEST_FILE
        for recording in _folders(home.store / RECORDINGS)
        for path in _folders(recording)
        if MANIFEST_FILE in names_in(path)
    ]


def stored_recordings(home: Home) -> list[StoredRecording]:
    """Return every recording with a readable manifest, the least recently used first."""
    by_id: dict[str, list[ManifestRef]] = {}
    for ref in list_manifests(home):
        by_id.setdefault(ref.recording.id, []).append(ref)
    found = [
        StoredRecording(
            id_,
            tuple(refs),
            frozenset(key for ref in refs for key in ref.keys),
            max(ref.used_s() for ref in refs),
        )
        for id_, refs in by_id.items()
    ]
    return sorted(found, key=lambda recording: (recording.used_s, recording.id))


def matching_recording(
    selector: str, recordings: Iterable[RecordingInfo], unreadable: Iterable[str] = ()
) -> str | None:
    """Return the id that ``selector`` means: an id, a path, a name or the start of an id, in this order.

    ``unreadable`` are ids of which nothing else is known. None when nothing fits.

    Raises:
        InputError: several fit.
    """
    infos = {info.id: info for info in recordings}
    ids = sorted({*infos, *unreadable})
    path = os.path.realpath(user_path(selector)) if selector and "\0" not in selector else ""
    for fits in (
        [id_ for id_ in ids if id_ == selector],
        [id_ for id_, info in infos.items() if os.path.realpath(info.path) == path],
        [id_ for id_, info in infos.items() if info.name == selector],
        [id_ for id_ in ids if selector and id_.startswith(selector)],
    ):
        if len(fits) > 1:
            raise InputError(
                f"{selector!r} fits several recordings: give one of {', '.join(sorted(fits)[:6])}."
            )
        if fits:
            return fits[0]
    return None


def manifest_names(path: Path) -> ManifestNames:
    """Return which entries, pictures and files a manifest names.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    manifest = read_manifest(path)
    places = {manifest.recording.path}
    places.update(frame.source for frame in manifest.frames)
    places.update(frame.source for frame in manifest.skipped)
    return ManifestNames(
        frozenset(frame.key for frame in manifest.frames),
        frozenset(frame.pixels for frame in manifest.frames),
        frozenset(places),
    )


def _folders(path: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as items:
        return [path / item.name for item in items if item.is_dir(follow_symlinks=False)]
    return []


def _made(parent: Folder, name: str, durability: Durability) -> Folder:
    parent.make_folder(name, exist_ok=True)
    parent.sync(durability)
    return parent.folder(name)


def check_recording_id(recording_id: str) -> None:
    """Refuse an id that cannot be a folder's name.

    Raises:
        StoreError: it cannot.
    """
    size = len(recording_id.encode("utf-8", "surrogateescape"))
    forbidden = "/" in recording_id or "\\" in recording_id or ".." in recording_id
    if (
        forbidden
        or recording_id.startswith(".")
        or not 0 < size <= _MAX_ID_BYTES
        or not recording_id.isprintable()
    ):
        raise StoreError(
            f"recording id {recording_id[:80]!r}: expected 1 to {_MAX_ID_BYTES} printable bytes "
            "without '/', '\\' and '..', not starting with '.'"
        )


def _read_document(path: Path) -> JsonObject:
    try:
        with Folder.open(path.parent) as folder:
            raw = folder.read(path.name, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise StoreError(
            f"cannot read manifest {path}: {error.strerror}; run seeonce encode again"
        ) from error
    try:
        document = unseal(raw, f"manifest {path}")
    except StoreError as error:
        raise StoreError(f"{error}; run seeonce encode again") from None
    if (found := document.integer("format")) != MANIFEST_FORMAT:
        raise StoreError(f"{path} has format {found}, this seeonce reads {MANIFEST_FORMAT}: upgrade seeonce")
    return document


def _ref(path: Path) -> ManifestRef:
    document = _read_document(path)
    try:
        keys = tuple(EntryKey.from_hex(frame.text("key")) for frame in document.children("frames"))
    except ValueError as error:
        raise StoreError(f"manifest {path}: {error}; run seeonce encode again") from None
    ref = ManifestRef(
        path=path,
        recording=document.child("recording").record(RecordingInfo),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        created_at=document.text("created_at"),
        num_frames=len(keys),
        num_skipped=document.length("skipped"),
        complete=document.flag("complete"),
        keys=keys,
    )
    if (path.parent.parent.name, path.parent.name) != (ref.recording.id, ref.encoder_id.hex):
        raise StoreError(f"manifest {path} is that of recording {ref.recording.id}, encoder {ref.encoder_id}")
    return ref
