"""Which pictures of a recording's videos are frames: one timeline, looked at every so many seconds.

Owns the moments and the timeline over several videos, one after the other. Does not own finding
the picture of a moment (``picture_times``) nor whether it shows something new (``scene_change``).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cache.errors import InputError
from cache.pixel_index import FileStamp
from sources.decoder import Decoder
from sources.picture_times import Pick, PictureTimes


@dataclass(frozen=True, slots=True)
class Track:
    """One video of a recording: its file as it was before it was listed, and its decoder."""

    stamp: FileStamp
    decoder: Decoder

    @classmethod
    def of(cls, video: Path) -> "Track":
        """Take the stamp of a video. Raises ``OSError`` when there is none."""
        stamp = FileStamp.of(video)
        return cls(stamp, Decoder(stamp))


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen picture: of which track, and when on the timeline of them all, in seconds."""

    track: int
    pick: Pick
    timestamp_s: float


class Timeline:
    """Several videos, one after the other. Iterating once gives the chosen pictures in order."""

    def __init__(self, tracks: Sequence[Track], every_s: float) -> None:
        """Choose for k = 0, 1, 2, … the first picture at or after ``k * every_s`` seconds.

        A picture that stands for longer than that is chosen once. Seconds count from the first
        picture; each video begins where the one before it ends.
        """
        self._tracks = tracks
        self._every = Fraction(str(every_s))  # exact: k times a float may miss a picture on the mark
        self._num_marks = 0  # that are behind
        self.length_s = Fraction(0)  # of the tracks that were gone through
        self.remarks: list[str] = []

    def __iter__(self) -> Iterator[Chosen]:
        for number, track in enumerate(self._tracks):
            try:
                times = PictureTimes(Path(track.stamp.path))
            except InputError as error:
                self.remarks.append(str(error))
                continue
            try:
                yield from self._of(number, times)
            finally:
                times.close()

    def _of(self, number: int, times: PictureTimes) -> Iterator[Chosen]:
        while (pick := times.first_at_or_after(self._due(times))) is not None:
            seconds = self.length_s + (pick.pts - times.start) * times.time_base
            self._num_marks = math.floor(seconds / self._every) + 1
            yield Chosen(number, pick, float(seconds))
        self.length_s += times.length_s()
        self.remarks += [remark for remark in (times.damage(), times.missing()) if remark]

    def _due(self, times: PictureTimes) -> int:
        """Give the next moment in ticks of a video; its first picture when that moment is before it."""
        ticks = (self._num_marks * self._every - self.length_s) / times.time_base
        return times.start + max(0, math.ceil(ticks))
