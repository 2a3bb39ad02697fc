"""Pictures cut into patches: the values of mlx-vlm's own processor bit for bit, in an eighth of its bytes.

A patch stays as the bytes of the resized picture. What the tower takes of them, normalised and doubled for
the temporal pair, is looked up on the device: a byte of a channel has one of 256 values.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.key import Preprocessing
from sources.pixels import MAX_ASPECT_RATIO

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """One resized picture: ``pixels`` uint8 ``(num_patches, 3, patch_size * patch_size)``.

    Patches come in the order in which the merger takes them together.
    """

    pixels: NDArray[np.uint8]
    grid_thw: tuple[int, int, int]


def cut_into_patches(image: "Image.Image", preprocessing: Preprocessing) -> Patches:
    """Resize an RGB picture and cut it. Any number of threads may call this at once.

    Raises:
        InputError: its shape is beyond what the model takes.
    """
    from PIL import Image

    width, height = resized_size(image.width, image.height, preprocessing)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    side, merge = preprocessing.patch_size, preprocessing.merge_size
    rows, columns = height // side, width // side
    patches = np.empty((rows * columns, 3, side * side), np.uint8)
    line = f"V{side}"  # the bytes of one line of a patch move together
    lines = patches.view(line).reshape(rows // merge, columns // merge, merge, merge, 3, side)
    for channel, band in enumerate(image.split()):
        cut = np.asarray(band).view(line).reshape(rows // merge, merge, side, columns // merge, merge)
        lines[..., channel, :] = cut.transpose(0, 3, 1, 4, 2)
    return Patches(patches, (1, rows, columns))


def value_table(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return what each byte of each channel is to the tower: float32 ``(3, 256)``."""
    values = np.arange(256, dtype=np.float32)
    if preprocessing.do_rescale:
        values = values * preprocessing.rescale_factor
    table = np.tile(values, (3, 1))
    if preprocessing.do_normalize:
        mean = np.array(preprocessing.image_mean, np.float32)[:, None]
        std = np.array(preprocessing.image_std, np.float32)[:, None]
        table = (table - mean) / std
    return table


def num_tokens(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Return how many merged tokens a picture gives; none for a shape that the model does not take."""
    try:
        resized_width, resized_height = resized_size(width, height, preprocessing)
    except InputError:
        return 0
    return resized_width * resized_height // (preprocessing.patch_size * preprocessing.merge_size) ** 2


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the width and height that a picture is resized to: whole merged tokens, within the limits.

    Source: ``smart_resize`` of the Qwen2-VL processor in transformers.

    Raises:
        InputError: more than 200 times as long as wide, or the other way round.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InputError(
            f"a picture of {width}x{height} cannot be resized: the model takes pictures up to "
            f"{MAX_ASPECT_RATIO} times as long as wide"
        )
    unit = preprocessing.patch_size * preprocessing.merge_size
    sides = [round(side / unit) * unit for side in (width, height)]
    if math.prod(sides) > preprocessing.max_pixels:
        shrink = math.sqrt(width * height / preprocessing.max_pixels)
        sides = [max(unit, math.floor(side / shrink / unit) * unit) for side in (width, height)]
    elif math.prod(sides) < preprocessing.min_pixels:
        grow = math.sqrt(preprocessing.min_pixels / (width * height))
        sides = [math.ceil(side * grow / unit) * unit for side in (width, height)]
    return sides[0], sides[1]
