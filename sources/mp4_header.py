"""What the boxes of an MP4 or QuickTime file tell by a few small reads, without opening it as a video.

Owns the movie header (ISO/IEC 14496-12, 8.2.2): when it was made, how long it is; opening a video decodes
a picture, which a listing of a thousand recordings cannot afford. Owns also whether the boxes of a
fragmented file are whole, which FFmpeg passes over in silence. Reads no other content.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

_UNIX_EPOCH_S = 2_082_844_800  # of 1970, in seconds since 1904
_MAX_BOXES = 10_000
_MAX_FRAGMENT_BOXES = 1_000_000  # two for each fragment, and a fragment may be one picture
_BESIDE_OTHERS = frozenset(
    b"ftyp pdin moov moof mfra mdat imda free skip meta meco styp sidx ssix prft emsg uuid wide udta".split()
)
_UNKNOWN = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, slots=True)
class MovieHeader:
    """What the header tells: Unix seconds, and seconds; None for what it leaves open."""

    made_s: float | None
    length_s: Fraction | None


def read_movie_header(path: Path) -> MovieHeader | None:
    """Read the movie header; None when there is none, in whatever kind of file. Raises ``OSError``."""
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, path.stat().st_size):
            if kind == b"moov":
                return _first_header(file, start, end)
    return None


def first_gap(path: Path) -> float | None:
    """Say how far into a fragmented file, 0 to 1, the first bytes lie that are no box of it.

    None when there are none, or the file is not fragmented. Raises ``OSError``.
    """
    size, reached = path.stat().st_size, 0
    is_fragmented, gaps = False, []
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, size, _MAX_FRAGMENT_BOXES):
            is_fragmented |= kind == b"moof"
            if kind not in _BESIDE_OTHERS:
                gaps.append(start)
            reached = end
    if reached < size:
        gaps.append(reached)
    return gaps[0] / size if is_fragmented and gaps else None


def _first_header(file: BinaryIO, start: int, end: int) -> MovieHeader | None:
    for kind, inner, _ in _boxes(file, start, end):
        if kind == b"mvhd":
            file.seek(inner)
            return _parse(file.read(32))
    return None


def _boxes(
    file: BinaryIO, position: int, end: int, max_boxes: int = _MAX_BOXES
) -> Iterator[tuple[bytes, int, int]]:
    """Walk over boxes: kind, and where its content starts and ends. Stops at what is no box."""
    for _ in range(max_boxes):
        if position + 8 > end:
            return
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        start = position + 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack_from(">Q", head, 8)[0], position + 16
        until = end if size == 0 else min(end, position + size)
        if until < start or not kind.isalnum():
            return
        yield kind, start, until
        position = until


def _parse(content: bytes) -> MovieHeader | None:
    """Read version 0 (32 bits) or 1 (64 bits): version and flags, made, changed, time scale, length."""
    layout = ">4xIIII" if content[:1] == b"\0" else ">4xQQIQ"
    if len(content) < struct.calcsize(layout):
        return None
    made, _, scale, length = struct.unpack_from(layout, content)
    # Some writers count from 1970: what lies before that in seconds since 1904 is meant so.
    made_s = float(made - _UNIX_EPOCH_S if made >= _UNIX_EPOCH_S else made)
    known = scale > 0 and length > 0 and length not in _UNKNOWN
    return MovieHeader(made_s if made else None, Fraction(length, scale) if known else None)
