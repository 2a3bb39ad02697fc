"""Which pictures of a recording's videos are frames: one timeline, looked at every so many seconds."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.base.listener import Listener
from cache.base.text import printable
from sources.container import read_header
from sources.decoder import Decoder, Player
from sources.picture_times import Keyframe, Pick, PictureTimes
from sources.recording import FrameChoice

if TYPE_CHECKING:
    from av import VideoFrame


_FAR = 1 << 62  # later than any picture
_NOTE = "chosen pictures, format 2"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen picture: of which video, and when on the timeline of them all, in seconds."""

    video: int
    pick: Pick
    timestamp_s: float


class Timeline:
    """Several videos, one after the other. Iterating once gives the chosen pictures in order."""

    def __init__(self, videos: Sequence[Decoder], choice: FrameChoice) -> None:
        """Choose for k = 0, 1, 2, … the picture on the screen at ``k * every_s`` seconds.

        One that stands for longer than that is chosen once. Seconds count from the first picture, of a
        picture from when it appears; each video begins where the one before it ends.
        """
        self._videos = videos
        self._every = Fraction(str(choice.every_s))  # exact: k times a float may miss a picture on the mark
        self._only = choice.only
        self._num_marks = 0  # that are behind
        self.length_s = Fraction(0)  # of the videos that were gone through
        self.remarks: list[str] = []

    def __iter__(self) -> Iterator[Chosen]:
        for number, decoder in enumerate(self._videos):
            video = Path(decoder.stamp.path)
            try:
                times = PictureTimes(video)
            except InputError as error:
                self.remarks.append(str(error))
                continue
            try:
                picks = self._on_marks(times) if self._only is None else self._named(times, video, self._only)
                for pick in picks:
                    since_start = max(0, pick.pts - times.start)
                    yield Chosen(number, pick, float(self.length_s + since_start * times.time_base))
                self.length_s += times.length_s()
                self._num_marks = math.ceil(self.length_s / self._every)
                self.remarks += [remark for remark in (times.damage(), times.missing()) if remark]
            finally:
                times.close()

    def _on_marks(self, times: PictureTimes) -> Iterator[Pick]:
        while True:
            mark_s = self._num_marks * self._every - self.length_s
            found = times.shown_at(times.start + math.floor(mark_s / times.time_base))
            if found is None:
                return
            pick, following = found
            yield pick
            if following is None:
                return
            follows_s = self.length_s + (following - times.start) * times.time_base
            self._num_marks = math.ceil(follows_s / self._every)

    def _named(self, times: PictureTimes, video: Path, sources: frozenset[str]) -> Iterator[Pick]:
        """Find pictures by the sources of their frames."""
        position = re.compile(re.escape(f"{printable(video)}#pts=") + r"(-?[0-9]{1,18})(?:&.*)?")
        for pts in sorted(int(found[1]) for source in sources if (found := position.fullmatch(source))):
            pick = times.shown_at(pts)
            if pick is not None and pick[0].pts == pts:
                yield pick[0]
        if len(self._videos) > 1:
            times.shown_at(_FAR)  # the next video begins where this one ends


_WIDTH, _HEIGHT = 128, 72

Luma = NDArray[np.int16]


def changes(
    chosen: Iterable[Chosen], look: "Callable[[Chosen], VideoFrame]", threshold: float
) -> Iterator[Chosen]:
    """Yield the first picture, and each that differs by ``threshold`` or more from the last one yielded.

    Each is decoded and looked at once. Another size is a change. One that cannot be decoded is
    yielded, so that it is named when it is read, and compared with nothing.
    """
    last: tuple[tuple[int, int], Luma] | None = None
    for one in chosen:
        try:
            picture = look(one)
        except InputError:
            yield one
            continue
        size, luma = (picture.width, picture.height), small_luma(picture)
        if last is None or last[0] != size or difference(last[1], luma) >= threshold:
            last = size, luma
            yield one


def small_luma(picture: "VideoFrame") -> Luma:
    """Shrink a picture to luma alone, ``(72, 128)``, 0 to 255."""
    small = picture.reformat(width=_WIDTH, height=_HEIGHT, format="gray", interpolation="AREA")
    return np.asarray(small.to_ndarray(), dtype=np.int16)


def difference(one: Luma, other: Luma) -> float:
    """Give the mean absolute difference of two small pictures, 0 to 1."""
    return float(np.abs(one - other).mean() / 255)


Selection = tuple[tuple[Chosen, ...], tuple[str, ...]]
"""The chosen pictures in order, and what is missing of their videos."""


def select(videos: Sequence[Decoder], choice: FrameChoice, player: Player) -> Selection:
    """Choose the pictures; those that had to be decoded for it are remembered in its ``notes``.

    Raises:
        InputError: None of the videos has a picture.
    """
    notes = choice.notes
    if choice.scene_change is None or notes is None:
        return _select(videos, choice, player)
    name = _note_name(videos, choice)
    known = _from_note(notes.get_note(name))
    if known is None:
        known = _select(videos, choice, player)
        if not any(video.stamp.racy for video in videos):
            notes.put_note(name, _to_note(known))
    return known


def _select(videos: Sequence[Decoder], choice: FrameChoice, player: Player) -> Selection:
    timeline = Timeline(videos, choice)
    pictures = iter(timeline)
    if choice.scene_change is not None:
        pictures = _reported(pictures, videos, choice.listener) if choice.listener else pictures
        pictures = changes(
            pictures, lambda one: player.look(videos[one.video], one.pick), choice.scene_change
        )
    chosen = tuple(islice(pictures, choice.limit))
    if not chosen:
        raise InputError(timeline.remarks[0] if timeline.remarks else "a recording without a video")
    return chosen, tuple(timeline.remarks)


def _reported(pictures: Iterator[Chosen], videos: Sequence[Decoder], listener: Listener) -> Iterator[Chosen]:
    """Show how far the scan is, each time when the next one is asked for, in seconds of the recording."""
    length_s = round(sum(read_header(Path(video.stamp.path)).length_s or 0 for video in videos))
    for picture in pictures:
        yield picture
        if (num_s := round(picture.timestamp_s)) < length_s:
            listener.show("scan", "s", num_s, length_s)
    listener.show("scan", "s", length_s, length_s)


def _note_name(videos: Sequence[Decoder], choice: FrameChoice) -> str:
    stamps = [
        (stamp.path, stamp.size, stamp.mtime_ns, stamp.inode, stamp.ctime_ns)
        for stamp in (video.stamp for video in videos)
    ]
    return f"{_NOTE}: {json.dumps([choice.every_s, choice.limit, choice.scene_change, stamps])}"


def _to_note(selection: Selection) -> str:
    rows = [
        [one.video, one.timestamp_s, one.pick.pts, one.pick.at, *one.pick.key, one.pick.before_key]
        for one in selection[0]
    ]
    return json.dumps([rows, selection[1]])


def _from_note(text: str | None) -> Selection | None:
    """Read a note that ``_to_note`` wrote: the index has checked that it is unchanged."""
    if text is None:
        return None
    rows, remarks = json.loads(text)
    chosen = (
        Chosen(video, Pick(pts, at, Keyframe(key_pts, seek_to), before_key), timestamp_s)
        for video, timestamp_s, pts, at, key_pts, seek_to, before_key in rows
    )
    return tuple(chosen), tuple(remarks)
