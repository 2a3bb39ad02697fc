"""Whether a picture shows something new: the measure behind ``--scene-change``.

Owns the measure and the filter. Does not choose the pictures that are looked at (``sampling``).

The measure is the mean absolute difference of luma between two pictures, both shrunk to
128 x 72 by averaging, from 0 (the same) to 1 (black against white). On a drawn light screen of
1920 x 1080:

    0.0001   a word is typed            0.014   a page of text is scrolled
    0.001    a line is typed            0.026   a light window over a quarter of it opens
    0.006    a menu opens               0.17    a dark window over a quarter of it opens
    0.011    a dialog opens             0.73    a dark application takes the place of a light one
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.errors import InputError
from sources.sampling import Chosen

if TYPE_CHECKING:
    from av import VideoFrame

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
