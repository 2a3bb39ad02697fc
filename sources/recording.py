"""What a recording is to pass one: an ordered list of frames that can be read later.

Owns `Frame`, the `Recording` protocol that every source answers to, and how recordings are
named. Opens no file, finds no source (`sources`), decodes no picture (`pixels`, `video`).
"""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from cache.manifest import RecordingInfo
from cache.pixel_index import FileStamp
from cache.places import printable
from cache.user_path import user_path

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Frame", "Recording", "iso_utc", "printable", "recording_id", "resolve"]

_MAX_SLUG_LENGTH = 48


@dataclass(frozen=True, slots=True)
class Frame:
    """One still image of a recording, not yet decoded.

    `index` is zero-based and dense over what the recording lists, after sampling and limit.
    `timestamp_s` is in seconds from the recording's start. `source` is the file's path, for a
    video with the position, as in ``/path/video.mp4#pts=12345``. `stamp` identifies the file
    (and the position), so that its pixel digest can be remembered. ``perceptual_hash`` is the one
    of 64 bits that the source has of this picture, if it has one.
    """

    index: int
    timestamp_s: float
    source: str
    stamp: FileStamp
    _decode: "Callable[[], Image.Image] | None" = field(default=None, repr=False, compare=False)
    perceptual_hash: int | None = None

    def read(self) -> "Image.Image":
        """Decode the picture as the live path sees it: upright, RGB.

        Raises:
            InputError: The file is gone, unreadable, damaged, or no picture of a screen.
        """
        if self._decode is not None:
            return self._decode()
        from sources.pixels import read_image

        return read_image(Path(self.stamp.path))


class Recording(Protocol):
    """An ordered list of frames from one source."""

    @property
    def info(self) -> RecordingInfo:
        """What the manifest keeps of this recording."""

    @property
    def max_readers(self) -> int:
        """How many threads may call `Frame.read` at once."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of it, one line each: what is missing or was left out, and why."""

    def frames(self) -> Sequence[Frame]:
        """List the frames in order, without decoding a picture."""

    def close(self) -> None:
        """Release what reading has opened. Reading again opens it again."""


def recording_id(path: Path) -> str:
    """Name a recording after its place: a slug and 8 hex digits of the resolved path's BLAKE3.

    Only ``[a-z0-9._-]``. The same path always gives the same id, also when nothing is there
    any more.
    """
    resolved = resolve(path)
    ascii_name = unicodedata.normalize("NFKD", resolved.name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9._-]+", "-", ascii_name.lower())[:_MAX_SLUG_LENGTH].strip("-._")
    return f"{slug or 'recording'}-{blake3(os.fsencode(resolved)).hexdigest()[:8]}"


def resolve(path: Path) -> Path:
    """Give the absolute path with `~` and links resolved, whether or not anything is there."""
    return Path(os.path.realpath(user_path(path)))


def iso_utc(posix_s: float) -> str:
    """Write POSIX seconds as ISO 8601 in UTC with milliseconds, so that text sorts as time does."""
    return datetime.fromtimestamp(posix_s, UTC).isoformat(timespec="milliseconds")
