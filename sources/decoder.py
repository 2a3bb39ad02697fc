"""Decodes chosen pictures of a video, in any order: forward, with a seek where that skips pictures."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache.base.errors import InputError
from cache.base.text import printable
from cache.pixel_index import FileStamp
from sources.colour import to_srgb
from sources.container import open_container, packets, video_stream
from sources.picture_times import Pick
from sources.pixels import check_size

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image
    from PIL.Image import Transpose

_MAX_DECODER_THREADS = 8  # each holds a picture


def _turn(picture: "VideoFrame") -> "Transpose | None":
    """Give what makes the picture upright by its display matrix; None when nothing need be done.

    Costs a reference cycle that holds the picture until the next garbage collection: PyAV keeps
    the side data in the picture and the picture in the side data.
    """
    from av.buffer import Buffer
    from PIL.Image import Transpose

    matrix = picture.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return None
    a, b, _, c, d = np.sign(np.frombuffer(bytes(matrix), np.int32)[:5]).tolist()
    return {
        (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
        (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
        (-1, 0, 0, -1): Transpose.ROTATE_180,
        (0, -1, 1, 0): Transpose.ROTATE_90,
        (0, 1, -1, 0): Transpose.ROTATE_270,
        (0, 1, 1, 0): Transpose.TRANSPOSE,
        (0, -1, -1, 0): Transpose.TRANSVERSE,
    }.get((a, b, c, d))


class Player:
    """The decoders of a recording's videos, of which one is open at a time. Any thread may ask."""

    def __init__(self) -> None:
        """Nothing is open until a picture is asked for."""
        self._lock = threading.Lock()
        self._playing: Decoder | None = None

    def read(self, decoder: "Decoder", pick: Pick) -> "Image.Image":
        """Decode one picture, upright and RGB. Raises as ``Decoder.picture``."""
        with self._lock:
            return decoder.show(self._picture(decoder, pick), pick)

    def look(self, decoder: "Decoder", pick: Pick) -> "VideoFrame":
        """Decode one picture as it is stored. Raises as ``Decoder.picture``."""
        with self._lock:
            return self._picture(decoder, pick)

    def close(self) -> None:
        """Close what is open; the next picture opens it again."""
        with self._lock:
            if self._playing is not None:
                self._playing.close()

    def _picture(self, decoder: "Decoder", pick: Pick) -> "VideoFrame":
        if self._playing is not None and self._playing is not decoder:
            self._playing.close()
        self._playing = decoder
        return decoder.picture(pick)


class _Shown(NamedTuple):
    at: int  # its pts; in an AVI file its place
    picture: "VideoFrame"


class Decoder:
    """Decodes chosen pictures of one video; holds one picture besides those inside the codec.

    ``stamp`` is its file as it was before it was listed.
    """

    def __init__(self, stamp: FileStamp) -> None:
        """Decode the file that this is the stamp of, as long as it stays that file."""
        self._video = Path(stamp.path)
        self.stamp = stamp
        self.num_decoded = 0  # pictures that came out of the codec
        self._container: InputContainer | None = None
        self._shown: Iterator[_Shown] = iter(())
        self._peeked: _Shown | None = None  # decoded in search of an earlier one, or to see where a seek went
        self._at: int | None = None  # of the last pick that was looked for
        self._counts = False  # AVI has no presentation times: pictures are counted from the start
        self._num_threads = min(_MAX_DECODER_THREADS, os.cpu_count() or 1)  # one, once damage is met
        self._seeks = True  # until a seek landed behind what it was for
        self._damage = ""  # what the codec objected to since the last pick
        self._turns: dict[int, Transpose | None] = {}  # by rotation: asking for one has a price

    def picture(self, pick: Pick) -> "VideoFrame":
        """Decode one picture as it is stored.

        Raises:
            InputError: This picture is damaged or cannot be found, others may be fine; or the file
                was changed since it was listed.
        """
        self._require_unchanged()
        picture = self._find(pick)
        if self._num_threads > 1 and (picture is None or self._damage):
            self.close()  # with several threads an error takes the pictures beside it along
            self._num_threads = 1
            picture = self._find(pick)
        if picture is None or picture.is_corrupt:
            reason = self._damage or ("nothing decodes to it" if picture is None else "it builds on damage")
            raise InputError(f"{self._name(pick)}: damaged picture ({reason}); it is left out")
        check_size(picture.width, picture.height, self._name(pick))
        return picture

    def show(self, picture: "VideoFrame", pick: Pick) -> "Image.Image":
        """Make a picture upright, and RGB as a viewer shows it.

        Raises:
            InputError: Its pixel format cannot be converted.
        """
        import av

        try:
            image: Image.Image = to_srgb(picture).to_image()  # type: ignore[no-untyped-call]
            if picture.rotation not in self._turns:
                self._turns[picture.rotation] = _turn(picture)
        except (av.FFmpegError, ValueError) as error:
            raise InputError(
                f"{self._name(pick)}: cannot be shown as RGB ({error}); convert the video"
            ) from error
        turn = self._turns[picture.rotation]
        return image if turn is None else image.transpose(turn)

    def close(self) -> None:
        """Close the file and forget the position."""
        self._shown, self._peeked, self._at = iter(()), None, None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _name(self, pick: Pick) -> str:
        return f"{printable(self._video)}#pts={pick.pts}"

    def _require_unchanged(self) -> None:
        """Refuse another file in the place of the listed one: its pictures are not those that were chosen."""
        try:
            unchanged = FileStamp.of(self._video, self.stamp.position) == self.stamp
        except OSError as error:
            raise InputError(f"{printable(self._video)}: cannot be read ({error.strerror})") from error
        if not unchanged:
            self.close()
            raise InputError(
                f"{printable(self._video)}: changed since it was listed; run the same command again"
            )

    def _find(self, pick: Pick) -> "VideoFrame | None":
        """Give the picture; None where the codec shows none at that time."""
        self._damage = ""
        self._go_before(pick)
        self._at = pick.at
        while (shown := self._next()) is not None:
            if shown.at > pick.at:
                self._peeked = shown
                return None
            if shown.at == pick.at:
                return shown.picture
        return None

    def _next(self) -> _Shown | None:
        if self._peeked is None:
            return next(self._shown, None)
        shown, self._peeked = self._peeked, None
        return shown

    def _go_before(self, pick: Pick) -> None:
        """Stand somewhere before the picture; seek only to go back or to skip pictures."""
        if self._container is None:
            self._restart()
        goes_back = self._at is not None and pick.at <= self._at
        if self._seeks and (goes_back or self._skips(pick)):
            self._seeks = self._seek(pick)
            if not self._seeks:
                self._restart()
        elif goes_back:
            self._restart()

    def _skips(self, pick: Pick) -> bool:
        """Tell whether a keyframe stands between here and the picture, and not as the very next one."""
        if self._at is None or pick.before_key is None:
            return self._at is None or self._at < pick.key.pts
        return self._at < pick.before_key

    def _seek(self, pick: Pick) -> bool:
        """Go to the keyframe before the picture; False when decoding would start behind the picture."""
        import av

        container = self._container
        if container is None:
            return False
        try:
            container.seek(pick.key.seek_to, stream=video_stream(container, self._video))
        except av.FFmpegError:
            return False
        self._shown = self._decode(container)
        self._peeked = next(self._shown, None)
        return bool(self._damage) or (self._peeked is not None and self._peeked.at <= pick.at)

    def _restart(self) -> None:
        self.close()
        self._container = open_container(self._video)
        stream = video_stream(self._container, self._video)
        stream.thread_type = "AUTO"
        stream.thread_count = self._num_threads
        self._counts = self._container.format.name == "avi"
        self._seeks = self._seeks and not self._counts
        self._shown = self._decode(self._container)

    def _decode(self, container: "InputContainer") -> Iterator[_Shown]:
        """Decode from where the container stands, in presentation order, over damage."""
        place = 0
        for pictures in self._groups(container):
            if pictures is None:  # damage: what it would have given still counts
                place += 1
                continue
            pictures.reverse()
            while pictures:
                picture = pictures.pop()
                at = place if self._counts else picture.pts
                place += 1
                self.num_decoded += 1
                if at is not None:
                    yield _Shown(at, picture)

    def _groups(self, container: "InputContainer") -> "Iterator[list[VideoFrame] | None]":
        """Yield what each packet gives, None for damage, and at the end what the codec has held back."""
        import av

        stream = video_stream(container, self._video)
        for packet in packets(container, stream):
            try:
                yield _undiscarded(packet).decode() if packet.is_discard else packet.decode()
            except av.FFmpegError as error:
                self._damage = error.strerror or str(error)
                yield None
        try:
            yield stream.decode(None)
        except av.FFmpegError as error:
            self._damage = error.strerror or str(error)


def _undiscarded(packet: "Packet[VideoStream]") -> "Packet[Any]":
    """Copy a packet that an edit list cuts away: its picture may stand beyond the cut."""
    from av import Packet

    copy: Packet[Any] = Packet(bytes(packet))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.is_keyframe, copy.stream = packet.is_keyframe, packet.stream
    return copy
