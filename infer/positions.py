"""Three-axis positions (MRoPE) of a prompt with images, worked out from its spans.

Source: Qwen3-VL's ``get_rope_index``; a contract test compares with mlx-vlm's, which walks over token
ids and so cannot tell an image token that a user typed from a real one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where an image's tokens lie in a prompt: ``[start, start + num_tokens)``."""

    start: int
    num_tokens: int
    grid_thw: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """``position_ids`` int32 ``(3, 1, num_tokens)``; ``rope_delta`` is added to the cache offset later."""

    position_ids: NDArray[np.int32]
    rope_delta: int


def mrope_positions(num_tokens: int, images: tuple[ImageSpan, ...], merge_size: int) -> Positions:
    """Return the positions of a prompt of ``num_tokens`` tokens with ``images`` in ascending order.

    Text counts on along all three axes; an image spans rows and columns of its merged grid, and the
    text after it goes on from its largest position.
    """
    parts: list[NDArray[np.int32]] = []
    at = next_position = 0
    for image in images:
        parts.append(_text(image.start - at, next_position))
        next_position += image.start - at
        grid = _grid(image.grid_thw, merge_size) + next_position
        parts.append(grid)
        next_position = int(grid.max()) + 1
        at = image.start + image.num_tokens
    parts.append(_text(num_tokens - at, next_position))
    next_position += num_tokens - at
    return Positions(np.concatenate(parts, axis=1)[:, None, :], next_position - num_tokens)


def _text(num_tokens: int, start: int) -> NDArray[np.int32]:
    return np.tile(np.arange(start, start + num_tokens, dtype=np.int32), (3, 1))


def _grid(grid_thw: tuple[int, int, int], merge_size: int) -> NDArray[np.int32]:
    time, height, width = grid_thw
    axes = np.indices((time, height // merge_size, width // merge_size), dtype=np.int32)
    return axes.reshape(3, -1)
