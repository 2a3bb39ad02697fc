"""What a recording is to pass one: an ordered list of frames that can be read later."""

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from blake3 import blake3

from cache.base.errors import InputError, SeeonceError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import printable, user_path
from cache.manifest import RecordingInfo
from cache.objects import is_address
from cache.pixel_index import FileStamp, PixelIndex
from sources.in_bucket import read_picture

if TYPE_CHECKING:
    from PIL import Image

_MAX_SLUG_LENGTH = 48
DEFAULT_EVERY_S = 10.0  # of a video, a frame every so many seconds
DEFAULT_SCAN_EVERY_S = 1.0  # of a video, where a frame is taken when it differs


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
        """Decode the picture as a viewer shows it: upright, RGB.

        Raises:
            InputError: The file is gone, unreadable, damaged, or no picture of a screen.
            StoreError: It lies in a bucket, which cannot be read.
        """
        from sources.pixels import read_image

        try:
            if self._decode is not None:
                return self._decode()
            if is_address(self.stamp.path):
                return read_image(read_picture(self.stamp), self.source)
            return read_image(Path(self.stamp.path))
        except SeeonceError:
            raise
        except Exception as error:  # a decoder lets almost any exception out of a damaged file
            reason = printable(" ".join(str(error).split()) or type(error).__name__)
            raise InputError(f"{self.source}: cannot be decoded ({reason}); it is left out") from error


@dataclass(frozen=True, slots=True)
class Recording:
    """An ordered list of frames from one source, none of them decoded yet.

    ``max_readers`` threads may call `Frame.read` at once. ``remarks`` are what the user should know, one
    line each: what is missing or was left out, and why. ``left_out`` names what lies in its folder and is
    no frame, folders with a slash. ``length_s`` is in seconds, None if not known.
    """

    info: RecordingInfo
    _frames: tuple[Frame, ...]
    max_readers: int = field(default_factory=lambda: os.cpu_count() or 1)
    remarks: tuple[str, ...] = ()
    length_s: float | None = None
    left_out: tuple[str, ...] = ()
    _close: Callable[[], None] | None = None

    def frames(self) -> Sequence[Frame]:
        """List the frames in order, without decoding a picture."""
        return self._frames

    def part(self, chosen: range) -> Self:
        """Return the same recording with some of its frames, which keep their indexes."""
        return replace(self, _frames=self._frames[chosen.start : chosen.stop])

    def close(self) -> None:
        """Release what reading has opened. Reading again opens it again."""
        if self._close is not None:
            self._close()


def recording_id(path: Path) -> str:
    """Name a recording after its place: a slug and 8 hex digits of the resolved path's BLAKE3.

    Only ``[a-z0-9._-]``. The same path always gives the same id, also when nothing is there
    any more.
    """
    resolved = resolve(path)
    return id_of(resolved.name, "recording", os.fsencode(resolved))


def id_of(name: str, otherwise: str, place: bytes) -> str:
    """Make an id of a name, as far as that is ASCII, and 8 hex digits of the BLAKE3 of where it is."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9._-]+", "-", ascii_name.lower())[:_MAX_SLUG_LENGTH].strip("-._")
    slug = re.sub(r"\.{2,}", ".", slug)  # a manifest's folder has no ".." in its name
    return f"{slug or otherwise}-{blake3(place).hexdigest()[:8]}"


def resolve(path: Path) -> Path:
    """Give the absolute path with `~` and links resolved, whether or not anything is there."""
    return Path(os.path.realpath(user_path(path)))


def iso_utc(posix_s: float) -> str:
    """Write POSIX seconds as ISO 8601 in UTC with milliseconds, so that text sorts as time does."""
    return datetime.fromtimestamp(posix_s, UTC).isoformat(timespec="milliseconds")


Say = Callable[[str], None]
"""Takes one line about what cannot be read, while the rest goes on."""


class PendingNotes:
    """Notes made before it is known whether there is anything to encode: a refusal leaves no store behind."""

    def __init__(self, home: Home) -> None:
        """Read from the index of ``home``, if it is there; write to it only in ``write``."""
        self._home = home
        self._made: dict[str, str] = {}

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""
        if name in self._made or not self._home.store.is_dir():
            return self._made.get(name)
        with PixelIndex(self._home) as index:
            return index.get_note(name)

    def put_note(self, name: str, text: str) -> None:
        """Hold a small text until ``write``."""
        self._made[name] = text

    def write(self, index: PixelIndex) -> None:
        """Write down what was put."""
        for name, text in self._made.items():
            index.put_note(name, text)


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Which frames of a recording are wanted.

    Of a video what is on the screen every ``every_s`` seconds, with ``scene_change`` of these only those
    that differ so much (0 to 1) from the last one taken; of anything the first ``limit`` frames, if given.
    What had to be decoded for it is remembered in ``notes``, and ``listener`` is shown how far that is.
    ``only``, if given, are the sources of frames that a video's choice was, whatever chose them.
    """

    every_s: float = DEFAULT_EVERY_S
    limit: int | None = None
    scene_change: float | None = None
    notes: PendingNotes | None = field(default=None, compare=False)
    listener: Listener | None = field(default=None, compare=False)
    only: frozenset[str] | None = None

    def require_sound(self) -> None:
        """Refuse numbers that choose nothing.

        Raises:
            InputError: a number is out of range.
        """
        if not (math.isfinite(self.every_s) and self.every_s > 0):
            raise InputError(
                f"--every is {self.every_s}; expected a number of seconds above 0, as in --every 10"
            )
        if self.limit is not None and self.limit <= 0:
            raise InputError(
                f"--limit is {self.limit}; expected a number of frames above 0, as in --limit 100"
            )
        if self.scene_change is not None and not 0 <= self.scene_change <= 1:
            raise InputError(
                f"--scene-change is {self.scene_change}; expected 0 to 1, as in --scene-change 0.005"
            )


@dataclass(frozen=True, slots=True)
class Encoding:
    """How much of a recording is encoded under one encoder. ``created_at`` is ISO 8601."""

    encoder_id: str
    num_encoded: int
    num_skipped: int
    complete: bool
    compute_dtype: str
    max_pixels: int
    created_at: str


@dataclass(frozen=True, slots=True)
class RecordingListing:
    """A recording that was found, as cheaply as that goes: of a video only the header is read.

    ``path`` opens it again: of a recording inside a database, the database's path with a fragment.
    ``captured_at`` is ISO 8601 in UTC, as it is when the recording is opened. ``num_frames``
    and ``length_s`` (seconds) are None where they are not known without opening. ``is_there`` is
    false when it is known that no frame of it can be read any more. ``encodings`` are those in the store,
    where it was asked.
    """

    id: str
    name: str
    kind: str
    path: Path
    captured_at: str
    num_frames: int | None
    length_s: float | None
    is_there: bool = True
    encodings: tuple[Encoding, ...] = ()

    @classmethod
    def of(
        cls,
        info: RecordingInfo,
        path: Path,
        length_s: float | None,
        num_frames: int | None,
        *,
        is_there: bool = True,
    ) -> Self:
        """Describe a recording as its manifest does."""
        return cls(info.id, info.name, info.kind, path, info.captured_at, num_frames, length_s, is_there)


class Source(Protocol):
    """A module for one kind of recordings. A path belongs to the first source that holds it."""

    def listings(self, say: Say) -> Iterable[RecordingListing]:
        """List what lies at this source's own places; nothing where it has none."""

    def holds(self, path: Path) -> bool:
        """Tell by name and kind of file whether this source would open a path; opens and raises nothing."""

    def listing(self, path: Path) -> RecordingListing | None:
        """Describe what lies at a path that it holds; None when that is no recording or unreadable."""

    def open_path(self, path: Path, choice: FrameChoice) -> Recording:
        """Open a path that it holds.

        Raises:
            InputError: it cannot be read.
        """
