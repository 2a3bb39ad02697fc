"""What every source of recordings answers: a cheap listing, and opening by place.

Owns the protocol, what a listing tells, and which frames of a recording are asked for. Each source
implements it (``folder``, ``video``, …); ``sources.selectors`` holds them together. Reads nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache.errors import InputError
from sources.recording import Recording

DEFAULT_EVERY_S = 10.0  # of a video, a frame every so many seconds

Say = Callable[[str], None]
"""Takes one line about what cannot be read, while the rest goes on."""


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Which frames of a recording are wanted.

    Of a video one every ``every_s`` seconds; of anything the first ``limit`` frames, if given.
    """

    every_s: float = DEFAULT_EVERY_S
    limit: int | None = None

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


@dataclass(frozen=True, slots=True)
class RecordingListing:
    """A recording that was found, as cheaply as that goes: no video is opened for it.

    ``path`` opens it again: of a recording inside a database, the database's path with a fragment.
    ``captured_at`` is ISO 8601 in UTC; of a video it is the file's modification time. ``num_frames``
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
