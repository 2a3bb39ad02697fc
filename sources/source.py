"""What every source of recordings answers: a cheap listing, and opening by place.

Owns the protocol, what a listing tells, and which frames of a recording are asked for. Each source
implements it (``folder``, ``video``, …); ``sources.selectors`` holds them together. Reads nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cache.errors import InputError
from sources.recording import Recording

DEFAULT_EVERY_S = 10.0  # of a video, a frame every so many seconds
DEFAULT_LOOK_S = 1.0  # of a video, a look every so many seconds, where a frame is taken when it differs

Say = Callable[[str], None]
"""Takes one line about what cannot be read, while the rest goes on."""


Looked = Callable[[float, float], None]
"""Takes how many seconds of a recording's videos were looked at, and how long they are as far as known."""


class Notes(Protocol):
    """A memory for small texts; ``cache.pixel_index.PixelIndex`` is one."""

    def get_note(self, name: str) -> str | None:
        """Return the text last put under a name, or None."""

    def put_note(self, name: str, text: str) -> None:
        """Remember a small text under a name."""


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Which frames of a recording are wanted.

    Of a video one every ``every_s`` seconds, with ``scene_change`` of these only those that differ so
    much (0 to 1) from the last one taken; of anything the first ``limit`` frames, if given. What had to
    be decoded for the choice is remembered in ``notes``, and how far that is told to ``looked``.
    """

    every_s: float = DEFAULT_EVERY_S
    limit: int | None = None
    scene_change: float | None = None
    notes: Notes | None = field(default=None, compare=False)
    looked: Looked | None = field(default=None, compare=False)

    def require_sound(self) -> None:
        """Refuse numbers that choose nothing.

        Raises:
            InputError: a step or a limit that is none.
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
class RecordingListing:
    """A recording that was found, as cheaply as that goes: of a video only the header is read.

    ``path`` opens it again: of a recording inside a database, the database's path with a fragment.
    ``captured_at`` is ISO 8601 in UTC, as it is when the recording is opened. ``num_frames``
    and ``length_s`` (seconds) are None where they are not known without opening. ``is_there`` is
    false when it is known that no frame of it can be read any more.
    """

    id: str
    name: str
    kind: str
    path: Path
    captured_at: str
    num_frames: int | None
    length_s: float | None
    is_there: bool = True


class Source(Protocol):
    """One kind of recordings. A path belongs to the first source that holds it."""

    def listings(self, environ: Mapping[str, str], say: Say) -> Iterable[RecordingListing]:
        """List what lies at this source's own places; nothing where it has none."""

    def holds(self, path: Path) -> bool:
        """Tell by name and kind of file whether this source would open a path; opens and raises nothing."""

    def listing(self, path: Path) -> RecordingListing | None:
        """Describe what lies at a path that it holds; None when that is no recording or unreadable."""

    def open(self, path: Path, choice: FrameChoice) -> Recording:
        """Open a path that it holds.

        Raises:
            InputError: it cannot be read.
        """
