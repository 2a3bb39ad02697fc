"""What pass one leaves of a recording under one encoder: every frame's index, time, source and key."""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, JsonObject, JsonValue, seal, unseal
from cache.base.errors import StoreError
from cache.base.files import Durability, Folder
from cache.base.home import Home
from cache.entry import num_merged_tokens
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest, entry_key
from cache.layout import RECORDINGS, names_in


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
class ManifestRef:
    """A manifest on disk, without its frames; ``num_frames`` counts the encoded ones."""

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
class ManifestNames:
    """What manifests keep from being removed: entries, pictures, and what is remembered of files.

    ``places`` are paths of recordings and sources of frames (``cache.base.text``).
    """

    keys: frozenset[EntryKey] = frozenset()
    pixels: frozenset[PixelDigest] = frozenset()
    places: frozenset[str] = frozenset()

    @classmethod
    def of_all(cls, several: "Iterable[ManifestNames]") -> Self:
        """Return what any of several manifests names."""
        named = list(several)
        return cls(
            frozenset().union(*(one.keys for one in named)),
            frozenset().union(*(one.pixels for one in named)),
            frozenset().union(*(one.places for one in named)),
        )


MANIFEST_FORMAT = 1


def manifest_to_json(manifest: Manifest) -> dict[str, JsonValue]:
    """Return the document of a manifest, ready to be sealed."""
    recording = manifest.recording
    return {
        "format": MANIFEST_FORMAT,
        "recording": {
            "id": recording.id,
            "name": recording.name,
            "kind": recording.kind,
            "path": recording.path,
            "captured_at": recording.captured_at,
            "num_frames": recording.num_frames,
            "every_s": recording.every_s,
            "limit": recording.limit,
            **({} if recording.scene_change is None else {"scene_change": recording.scene_change}),
        },
        "encoder": manifest.encoder.to_json(),
        "encoder_id": manifest.encoder.encoder_id.hex,
        "frames": [_frame_to_json(frame) for frame in manifest.frames],
        "skipped": [_skipped_to_json(frame) for frame in manifest.skipped],
        "complete": manifest.complete,
        "created_at": manifest.created_at,
        SEAL_FIELD: UNSEALED,
    }


def _frame_to_json(frame: FrameEntry) -> dict[str, JsonValue]:
    return {
        "index": frame.index,
        "timestamp_s": frame.timestamp_s,
        "source": frame.source,
        "pixels": frame.pixels.hex,
        "key": frame.key.hex,
        "width": frame.width,
        "height": frame.height,
        "grid_thw": list(frame.grid_thw),
        "num_tokens": frame.num_tokens,
        **({} if frame.neighbour is None else {"neighbour": frame.neighbour}),
    }


def _skipped_to_json(frame: SkippedFrame) -> dict[str, JsonValue]:
    return {
        "index": frame.index,
        "timestamp_s": frame.timestamp_s,
        "source": frame.source,
        "reason": frame.reason,
    }


def recording_from_json(document: JsonObject) -> RecordingInfo:
    """Read the field ``recording`` of a manifest; ``StoreError`` for nonsense."""
    recording = document.child("recording")
    return RecordingInfo(
        id=recording.text("id"),
        name=recording.text("name"),
        kind=recording.text("kind"),
        path=recording.text("path"),
        captured_at=recording.text("captured_at"),
        num_frames=recording.integer("num_frames"),
        every_s=recording.number_or_none("every_s"),
        limit=recording.integer_or_none("limit"),
        scene_change=recording.number("scene_change") if recording.has("scene_change") else None,
    )


def frame_from_json(frame: JsonObject) -> FrameEntry:
    """Read one of ``frames``; ``StoreError`` for nonsense."""
    grid = frame.integers("grid_thw")
    if len(grid) != 3:
        raise StoreError(f"frame {frame.raw('index')}: grid_thw should be three numbers, got {grid[:8]}")
    try:
        pixels, key = PixelDigest.from_hex(frame.text("pixels")), EntryKey.from_hex(frame.text("key"))
    except ValueError as error:
        raise StoreError(f"frame {frame.raw('index')}: {error}") from None
    return FrameEntry(
        index=frame.integer("index"),
        timestamp_s=frame.number("timestamp_s"),
        source=frame.text("source"),
        pixels=pixels,
        key=key,
        width=frame.integer("width"),
        height=frame.integer("height"),
        grid_thw=(grid[0], grid[1], grid[2]),
        num_tokens=frame.integer("num_tokens"),
        neighbour=frame.integer("neighbour") if frame.has("neighbour") else None,
    )


def skipped_from_json(frame: JsonObject) -> SkippedFrame:
    """Read one of ``skipped``; ``StoreError`` for nonsense."""
    return SkippedFrame(
        index=frame.integer("index"),
        timestamp_s=frame.number("timestamp_s"),
        source=frame.text("source"),
        reason=frame.text("reason"),
    )


MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 512 << 20
_MAX_ID_BYTES = 200
_TRIES = 4

_log = logging.getLogger("seeonce.cache")


def manifest_path(home: Home, recording_id: str, encoder_id: EncoderId) -> Path:
    """Return where the manifest of a recording under an encoder lies.

    Raises:
        StoreError: the id cannot be a folder's name.
    """
    _check_id(recording_id)
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
            except (
                FileNotFoundError
            ):  # its folder was just made, and removed by a forget of the same recording
                if not tries_left:
                    raise
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; check the disk, its space and permissions"
        ) from error
    return path


def _replace(home: Home, manifest: Manifest, raw: bytes, durability: Durability) -> None:
    with (
        Folder.open(home.store / RECORDINGS) as recordings,
        _made(recordings, manifest.recording.id, durability) as recording,
        _made(recording, manifest.encoder.encoder_id.hex, durability) as folder,
    ):
        folder.replace(MANIFEST_FILE, raw, durability)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; whether its keys fit its pixels is asked by ``Manifest.problems``.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    document = _read_document(path)
    return Manifest(
        recording=recording_from_json(document),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        frames=tuple(map(frame_from_json, document.children("frames"))),
        skipped=tuple(map(skipped_from_json, document.children("skipped"))),
        complete=document.flag("complete"),
        created_at=document.text("created_at"),
    )


def list_manifests(home: Home, on_problem: Callable[[str], None] = _log.warning) -> list[ManifestRef]:
    """Return all manifests, newest first. One that cannot be read is told to ``on_problem``."""
    refs = []
    for path in manifest_files(home):
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


def manifest_names(path: Path) -> ManifestNames:
    """Return which entries, pictures and files a manifest names.

    Raises:
        StoreError: it is missing, damaged or of a newer format.
    """
    document = _read_document(path)
    frames = document.children("frames")
    sources = (frame.text("source") for frame in (*frames, *document.children("skipped")))
    try:
        return ManifestNames(
            frozenset(EntryKey.from_hex(frame.text("key")) for frame in frames),
            frozenset(PixelDigest.from_hex(frame.text("pixels")) for frame in frames),
            frozenset([document.child("recording").text("path"), *sources]),
        )
    except ValueError as error:
        raise StoreError(f"manifest {path}: {error}; run seeonce encode again") from None


def _folders(path: Path) -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(path) as items:
        return [path / item.name for item in items if item.is_dir(follow_symlinks=False)]
    return []


def _made(parent: Folder, name: str, durability: Durability) -> Folder:
    parent.make_folder(name, exist_ok=True)
    parent.sync(durability)
    return parent.folder(name)


def _check_id(recording_id: str) -> None:
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
    ref = ManifestRef(
        path=path,
        recording=recording_from_json(document),
        encoder=EncoderSpec.from_json(document.raw("encoder")),
        created_at=document.text("created_at"),
        num_frames=document.length("frames"),
        num_skipped=document.length("skipped"),
        complete=document.flag("complete"),
    )
    if (path.parent.parent.name, path.parent.name) != (ref.recording.id, ref.encoder_id.hex):
        raise StoreError(f"manifest {path} is that of recording {ref.recording.id}, encoder {ref.encoder_id}")
    return ref
