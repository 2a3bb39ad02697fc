"""Pictures of one video at moments that somebody else has chosen, such as a database's rows.

Owns finding them, in one pass over the timestamps. A moment means the first picture shown then or later,
as in sampling every so many seconds. Decodes nothing until a picture is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

from cache.errors import InputError
from sources.decoder import Player
from sources.picture_times import Pick, PictureTimes
from sources.recording import Frame, printable
from sources.sampling import Track
from sources.video import track_of


@dataclass(frozen=True, slots=True)
class MomentPictures:
    """The pictures of one video at given moments. One decoder, so one reader at a time."""

    _track: Track
    _player: Player
    _picks: dict[float, Pick]
    _end: str

    def frame(self, index: int, moment_s: float, row: str) -> Frame:
        """Make a frame of the picture at a moment that was asked for; ``row`` ends its source.

        Raises:
            InputError: the video ends before.
        """
        pick = self._picks.get(moment_s)
        if pick is None:
            raise InputError(self._end)
        return Frame(
            index=index,
            timestamp_s=moment_s,
            source=f"{printable(self._track.stamp.path)}#pts={pick.pts}&{row}",
            stamp=replace(self._track.stamp, position=f"pts={pick.pts}"),
            _decode=partial(self._player.read, self._track.decoder, pick),
        )

    def close(self) -> None:
        """Close the video; reading a frame opens it again."""
        self._player.close()


def open_moments(video: Path, moments_s: Sequence[float]) -> MomentPictures:
    """Find the pictures of a video at moments in seconds from its first picture, in any order.

    Raises:
        InputError: no video, or none that can be read.
    """
    track = track_of(video)
    times = PictureTimes(video)
    picks: dict[float, Pick] = {}
    try:
        for moment_s in sorted(set(moments_s)):
            ticks = math.ceil(
                Fraction(str(moment_s)) / times.time_base
            )  # exact: a picture on the mark is meant
            pick = times.first_at_or_after(times.start + ticks)
            if pick is None:
                break
            picks[moment_s] = pick
        end = times.missing() or f"{printable(video)}: ends before that moment"
    finally:
        times.close()
    return MomentPictures(track, Player(), picks, end)
