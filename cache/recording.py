"""What a manifest is: a recording, its encoder, and every frame with its key.

Owns: the types and what makes a manifest sound. Does not own: their text form
(``cache.manifest_json``), their place in the store (``cache.manifest``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cache.entry import num_merged_tokens
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest, entry_key


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

    ``places`` are paths of recordings and sources of frames (``cache.places``).
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
