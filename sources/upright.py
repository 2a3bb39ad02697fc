"""One decoded picture as a viewer shows it: RGB, turned and mirrored as the file says.

Pixels are taken as square (docs/decisions): what the live path is given is a picture without a
sample aspect ratio, and screens have square pixels.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL import Image
    from PIL.Image import Transpose


class Upright:
    """Turns the pictures of one video; its display matrix is asked for once for each rotation."""

    def __init__(self) -> None:
        """Know no rotation yet."""
        self._turns: dict[int, Transpose | None] = {}

    def image(self, picture: "VideoFrame") -> "Image.Image":
        """Convert a picture to RGB, upright. ``av.FFmpegError`` or ``ValueError`` when that cannot be."""
        image: Image.Image = picture.to_image()  # type: ignore[no-untyped-call]
        if picture.rotation not in self._turns:
            self._turns[picture.rotation] = _turn(picture)
        turn = self._turns[picture.rotation]
        return image if turn is None else image.transpose(turn)


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
