"""The text form of a manifest (docs/format.md, "The manifest").

Owns: its fields. Does not own: the types (``cache.recording``), the seal over the text
(``cache.canonical_json``).
"""

from cache.canonical_json import SEAL_FIELD, UNSEALED, JsonObject, JsonValue
from cache.errors import StoreError
from cache.key import EntryKey, PixelDigest
from cache.recording import FrameEntry, Manifest, RecordingInfo, SkippedFrame

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
