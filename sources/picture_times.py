"""When the pictures of a video are shown, found without decoding one and without reading more than needed."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cache.base.errors import InputError
from cache.base.text import printable
from sources.container import first_gap, open_container, packets, promised_length_s, video_stream

if TYPE_CHECKING:
    from av import Packet
    from av.video.stream import VideoStream

# H.264, HEVC and VVC: no picture is decoded after more than 16 that are shown after it. So when 17
# that are shown later have been read, none that is shown earlier can follow.
_MAX_REORDERED = 16
_BEFORE_ALL = -(2**63)
_TOLERANCE_S = 2  # by which a header may promise more than there is, since audio may last longer
# An edit list may begin in the middle of a picture, which FFmpeg leaves out. At a steady rate that is one
# picture of many, and not worth it; a screen that stands would be lost.
_LATE_S = Fraction(1, 10)


@dataclass(frozen=True, slots=True)
class Pick:
    """One picture, and the keyframe that decoding it needs; all in ticks of the video's time base.

    ``at`` is how the decoder knows it: its ``pts``, or in an AVI file, which has no presentation
    times, its place. ``before_key`` is the picture shown just before the keyframe, None when it was
    not read: whoever stands there gains nothing by a seek.
    """

    pts: int
    at: int
    key: "Keyframe"
    before_key: int | None


class Keyframe(NamedTuple):
    """When a keyframe is shown, and where to seek to arrive at it.

    FFmpeg seeks in an MP4 file by decoding times, having taken off the delay of the first keyframe.
    """

    pts: int
    seek_to: int


class PictureTimes:
    """The presentation timestamps of one open video. Ask in ascending order; ``close`` it."""

    def __init__(self, video: Path) -> None:
        """Open the video and find its first picture.

        Raises:
            InputError: No video, or one without a picture.
        """
        self._video = video
        self._last = self._end = _BEFORE_ALL  # when the last picture read begins, and ends
        self._read_to = _BEFORE_ALL  # the furthest packet read, in decoding order
        self._is_torn = False  # the last packet read lacks its end
        self._lost: tuple[int, int] | None = None  # where damage has swallowed keyframes
        self._first_delay: int | None = None  # by which keyframes are shown after they are decoded
        self._most_delay = 0
        self._cut: int | None = None  # the last picture before the start that an edit list leaves out
        self._container = open_container(video)
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        self._stream = video_stream(self._container, self._video)
        self._promised_s = promised_length_s(self._container, self._stream)
        self._counts = self._container.format.name == "avi"
        self._indexed = "mp4" in self._container.format.name
        self._counts_from_zero = "matroska" in self._container.format.name  # also its header's length
        self._seeks = not self._counts
        self.num_packets = 0  # read so far: what the search costs
        self._load_index()
        self._read_from(packets(self._container, self._stream))
        self._read_beyond(_BEFORE_ALL)
        if not self._shown or self._stream.time_base is None:
            raise InputError(f"{printable(self._video)}: a video without a single picture; record it again")
        self.start, self.time_base = self._shown[0], self._stream.time_base
        if self._counts_from_zero and self._container.duration:
            self._promised_s = Fraction(self._container.duration, 1_000_000) - self.start * self.time_base
        if (
            self._cut is not None
            and self._cut < self.start
            and (late := self._late(self.start)) * self.time_base > _LATE_S
        ):
            insort(self._shown, self._cut)
            self.start -= late

    def _late(self, first: int) -> int:
        """Give by how many ticks an edit list begins before the first picture that FFmpeg shows."""
        with (
            open_container(self._video) as edited,
            open_container(self._video, {"advanced_editlist": "0"}) as unedited,
        ):
            both = (packets(one, video_stream(one, self._video)) for one in (edited, unedited))
            for packet, same in zip(*both, strict=False):
                if packet.pts == first and packet.pos == same.pos and same.pts is not None:
                    return int(same.pts) - first
        return 0

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _open_again(self) -> None:
        self._container.close()
        self._container = open_container(self._video)
        self._stream = video_stream(self._container, self._video)

    def shown_at(self, pts: int) -> tuple[Pick, int | None] | None:
        """Find the picture that is on the screen at ``pts``: the last one that begins by then.

        Returns it with the ``pts`` of the one that follows, None behind the last one. Returns None after
        the end of the video, and where the file has no picture.
        """
        key = self._key_on_the_way(pts)
        if key is not None and not self._seek(key, pts):
            self._seeks = False  # its index leads astray: read it through once
            self._open_again()
            self._read_from(packets(self._container, self._stream))
        self._read_beyond(pts)
        place = bisect_right(self._shown, pts) - 1
        if place < 0:
            return None
        following = self._shown[place + 1] if place + 1 < len(self._shown) else None
        pick = self._pick(place)
        if following is None and pts > pick.pts and (pts - self.start) * self.time_base >= self._stands_s():
            return None
        keep = max(0, bisect_left(self._shown, pick.key.pts) - 1)  # this and the next need no more
        del self._shown[:keep]
        self._num_dropped += keep
        del self._keys[: self._num_keys(pick.pts) - 1]
        return pick, following

    def length_s(self) -> Fraction:
        """Give the length: to the end of the last picture or of the sound, or what the header says if longer.

        The header of an MP4 file may count what an edit list cuts away.
        """
        promised_s = self._promised_s or self._read_s()
        if self._ended and self._indexed and not self._missing_s():
            promised_s = min(promised_s, self._read_s())
            if (sound_s := self._sound_s()) - promised_s > _LATE_S:  # less is the padding of its codec
                promised_s = sound_s
        return max(promised_s, (self._last - self.start) * self.time_base)

    def _sound_s(self) -> Fraction:
        """Give when the sound of an MP4 file ends, from the first picture; 0 without sound."""
        ends = [
            ((sound.start_time or 0) + sound.duration) * sound.time_base
            for sound in self._container.streams.audio
            if sound.duration and sound.time_base is not None
        ]
        return max(ends, default=Fraction(0)) - self.start * self.time_base

    def missing(self) -> str:
        """Say what a broken tail has cost, once the end was reached; empty when nothing."""
        missing_s = self._missing_s()
        if missing_s <= 0 and not (self._ended and self._is_torn):
            return ""
        before = f", {float(missing_s):.1f} s before the end that it promises" if missing_s > 0 else ""
        return (
            f"{printable(self._video)}: breaks off {float(self._read_s()):.1f} s after its start{before}; "
            "what is there is used"
        )

    def damage(self) -> str:
        """Say where keyframes that the index names, or fragments, were not found; empty when nowhere."""
        if self._lost is None:
            return self._gap()
        since_s, until_s = (float((pts - self.start) * self.time_base) for pts in self._lost)
        return (
            f"{printable(self._video)}: damaged somewhere between {since_s:.1f} s and {until_s:.1f} s; "
            "the pictures there are lost, the others are used"
        )

    def _gap(self) -> str:
        share = first_gap(self._video) if self._ended and self._indexed else None
        if share is None:
            return ""
        return (
            f"{printable(self._video)}: damaged about {share:.0%} into the file; the pictures there, and "
            "perhaps all that follow, are lost, the others are used"
        )

    def _missing_s(self) -> Fraction:
        if not self._ended:
            return Fraction(0)
        if self._indexed:  # every picture is in the index, whether or not its bytes are in the file
            entries = self._stream.index_entries
            last = entries[len(entries) - 1]
            unread_s = (last.timestamp - self._read_to) * self.time_base
            if unread_s > 0 or last.is_discard or entries[0].is_discard:  # an edit list cuts on purpose
                return unread_s
            missing_s = (self._promised_s or Fraction(0)) - self._read_s()  # fragments are not indexed
            return missing_s if missing_s > _TOLERANCE_S else Fraction(0)
        missing_s = self._file_missing_s()
        return missing_s if missing_s > _TOLERANCE_S else Fraction(0)

    def _file_missing_s(self) -> Fraction:
        """Give by how much all streams end before the header's end, which is that of the longest."""
        promised_s = Fraction(self._container.duration or 0, 1_000_000)
        if promised_s - self._end * self.time_base > _TOLERANCE_S:
            return promised_s - max(self._end * self.time_base, self._end_of_all_s())
        return Fraction(0)

    def _end_of_all_s(self) -> Fraction:
        """Read the packets of all streams from the last keyframe on: sound may go on after the picture."""
        from av import FFmpegError
        from av.stream import Discard

        ends = [Fraction(0)]
        for stream in self._container.streams:
            stream.discard = Discard.default
        with suppress(FFmpegError):
            self._container.seek(self._keys[-1].seek_to, stream=self._stream)
            ends.extend(
                (packet.pts + (packet.duration or 0)) * packet.time_base
                for packet in self._container.demux()
                if packet.pts is not None
            )
        return max(ends)

    def _read_s(self) -> Fraction:
        return (self._end - self.start) * self.time_base

    def _load_index(self) -> None:
        """Have Matroska's cues read, which FFmpeg leaves to the first seek; its times begin at 0."""
        import av

        if self._counts_from_zero:
            try:
                self._container.seek(0)
            except av.FFmpegError:  # no picture is shown by then; packets have been read in search of one
                try:
                    self._container.seek(0, backward=False)
                except av.FFmpegError:
                    self._seeks = False
                    self._open_again()

    def _read_from(self, source: "Iterator[Packet[VideoStream]]") -> None:
        """Forget what was read, and go on with these packets."""
        self._packets = source
        self._shown: list[int] = []  # ascending, from the last but one that was asked for
        self._keys: list[Keyframe] = []  # ascending
        self._num_dropped = 0  # shown pictures before those; their place, while nothing was skipped
        self._position: int | None = None  # of the last packet, in decoding order
        self._ended = False

    def _key_on_the_way(self, pts: int) -> int | None:
        """Give the index's last keyframe up to ``pts``, if reading on would come to it."""
        if not self._seeks or self._position is None:
            return None
        entries = self._stream.index_entries
        found = entries.search_timestamp(pts - self._most_delay)
        if found < 0:
            return None
        key: int = entries[found].timestamp
        return key if key > self._position else None

    def _seek(self, key: int, pts: int) -> bool:
        """Go to a keyframe at or before ``pts``; False when the file goes elsewhere.

        The index of an MP4 file holds decoding times, so a keyframe may be shown after ``pts``
        though it is decoded before: then the one before it is meant.
        """
        import av

        for target in (key + (self._first_delay or 0), key, key - 1):
            try:
                self._container.seek(target, stream=self._stream)
            except av.FFmpegError:
                return False
            self._read_from(packets(self._container, self._stream))
            if not self._read_one():
                return True  # the index goes further than the file: nothing is there
            if self._keys and self._keys[0].pts <= pts:
                return True
        return False

    def _stands_s(self) -> Fraction:
        """Give until when the last picture stands, from the start; the end must have been reached."""
        return self._read_s() if self.missing() else self.length_s()

    def _read_beyond(self, pts: int) -> None:
        """Read until no picture that is shown by ``pts``, nor the one that follows, can come any more."""
        while len(self._shown) - bisect_right(self._shown, pts) <= _MAX_REORDERED and self._read_one():
            pass

    def _num_keys(self, pts: int) -> int:
        return bisect_right(self._keys, pts, key=attrgetter("pts"))

    def _pick(self, place: int) -> Pick:
        pts = self._shown[place]
        key = self._keys[self._num_keys(pts) - 1]
        before = bisect_left(self._shown, key.pts) - 1
        return Pick(
            pts=pts,
            at=self._num_dropped + place if self._counts else pts,
            key=key,
            before_key=self._shown[before] if before >= 0 else None,
        )

    def _read_one(self) -> bool:
        """Read a packet and note when its picture is shown; False at the end.

        What comes before the first keyframe cannot be decoded. What an edit list cuts away is
        decoded and not shown, and may still be the keyframe of what is shown.
        """
        packet = next(self._packets, None)
        if packet is None:
            self._ended = True
            return False
        self.num_packets += 1
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None:
            return True
        self._position = packet.dts if packet.dts is not None else pts
        self._read_to = max(self._read_to, self._position)
        self._is_torn = packet.is_corrupt
        if packet.is_keyframe:
            self._note_lost(pts)
            delay = pts - self._position
            self._first_delay = delay if self._first_delay is None else self._first_delay
            self._most_delay = max(self._most_delay, delay)
            seek_to = self._position + self._first_delay if self._indexed else pts
            insort(self._keys, Keyframe(pts, seek_to))
        if not self._keys or pts < self._keys[0].pts or _is_hidden(packet):
            return True
        if packet.is_discard:
            if not self._shown or pts < self._shown[0]:
                self._cut = pts if self._cut is None else max(self._cut, pts)
        else:
            insort(self._shown, pts)
            self._last = max(self._last, pts)
            self._end = max(self._end, pts + (packet.duration or 0))
        return True

    def _note_lost(self, key_pts: int) -> None:
        """Note when the index has a keyframe between this one and the one read before it."""
        if self._indexed or not self._keys or self._counts:
            return
        entries, before = self._stream.index_entries, self._keys[-1].pts
        found = entries.search_timestamp(key_pts - 1)
        if found >= 0 and entries[found].timestamp > before:
            since, until = self._lost or (before, key_pts)
            self._lost = min(since, before), max(until, key_pts)


def _is_hidden(packet: "Packet[VideoStream]") -> bool:
    """Tell VP8's reference pictures that are decoded and never shown, by their frame tag (RFC 6386, 9.1)."""
    return packet.stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10
