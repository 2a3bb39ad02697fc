"""mlx-vlm's vision encoder: a picture becomes features exactly as on mlx-vlm's live path.

It relies on the following, each held by a contract test: ``model.vision_tower(pixel_values, grid_thw)``
returns merged tokens and a list of DeepStack features; the live path casts ``pixel_values`` to the dtype
of ``patch_embed``; ``Qwen3VLImageProcessor`` gives the values that ``patches.py`` gives, which is tried
whenever the encoder is loaded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cache.base.errors import CheckpointError
from cache.entry import STORED_DTYPES, Features
from cache.key import EncoderSpec, Preprocessing
from checkpoint import backend
from checkpoint.config import Checkpoint
from checkpoint.identity import image_processor
from checkpoint.loading import cast, load_model
from precompute.patches import Patches, cut_into_patches, value_table


class VisionEncoder:
    """The vision tower, merger and DeepStack mergers of one checkpoint, in the compute dtype of ``spec``.

    Holds no language weights: they are never evaluated. Each picture is encoded alone, which is
    repeatable bit for bit; encoding several together changes results by about 3e-5. One thread alone uses it.
    """

    def __init__(self, checkpoint: Checkpoint, spec: EncoderSpec) -> None:
        """Load and evaluate the vision weights.

        Raises:
            CheckpointError: the checkpoint does not load, or mlx-vlm's processor gives other values.
        """
        _require_processors_values(image_processor(checkpoint), spec.preprocessing)
        self._mx = mx = backend.import_mlx()
        self.spec = spec
        self._tower = load_model(checkpoint).vision_tower
        cast(self._tower, spec.compute_dtype)
        dtype = self._tower.patch_embed.proj.weight.dtype
        self._value_table = mx.array(value_table(spec.preprocessing)).astype(dtype)
        mx.eval(self._tower.parameters(), self._value_table)
        self.provenance = backend.provenance()

    def encode(self, patches: Patches) -> Features:
        """Encode one picture: ``(1 + num_deepstack, num_tokens, hidden)`` in the compute dtype."""
        return self.start(patches)()

    def start(self, patches: Patches) -> Callable[[], Features]:
        """Begin to encode a picture; what is returned waits for its features and copies them to the host."""
        mx = self._mx
        values = pixel_values(patches, self._value_table, self.spec.preprocessing.temporal_patch_size)
        merged_tokens, deepstack = self._tower(values, mx.array([patches.grid_thw]))
        stacked = mx.stack([merged_tokens, *deepstack])
        if self.spec.compute_dtype == "bfloat16":  # which numpy lacks: the uint16 of its bits
            stacked = stacked.view(mx.uint16)
        mx.async_eval(stacked)
        return partial(self._features, stacked, patches.grid_thw)

    def _features(self, stacked: Any, grid_thw: tuple[int, int, int]) -> Features:
        self._mx.eval(stacked)
        dtype = self.spec.compute_dtype
        array = np.ascontiguousarray(np.array(stacked), dtype=STORED_DTYPES[dtype])
        return Features(array, dtype, grid_thw, self.spec.preprocessing.merge_size)


def pixel_values(patches: Patches, value_table: Any, temporal_patch_size: int) -> Any:
    """Return what mlx-vlm's processor makes of a picture, ``(num_patches, 3 * temporal_patch_size * p * p)``.

    ``value_table`` ``(3, 256)`` and the values are arrays of MLX and of one dtype.
    """
    mx = backend.import_mlx()
    pixels = mx.array(patches.pixels)
    values = mx.stack([value_table[band][pixels[:, band]] for band in range(3)], axis=1)
    return mx.repeat(values[:, :, None], temporal_patch_size, axis=2).reshape(len(patches.pixels), -1)


def _require_processors_values(processor: Any, preprocessing: Preprocessing) -> None:
    """Compare with mlx-vlm's processor on one small picture: another version may do otherwise."""
    processor.min_pixels, processor.max_pixels = preprocessing.min_pixels, preprocessing.max_pixels
    noise = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    picture = Image.fromarray(noise)
    theirs, patches = processor(images=[picture]), cut_into_patches(picture, preprocessing)
    mx = backend.import_mlx()
    table = mx.array(value_table(preprocessing))
    ours = np.array(pixel_values(patches, table, preprocessing.temporal_patch_size))
    grid = [patches.grid_thw]
    if not (np.array_equal(theirs["pixel_values"], ours) and np.array_equal(theirs["image_grid_thw"], grid)):
        raise CheckpointError(
            f"The image processor of mlx-vlm {backend.installed_version('mlx-vlm')} prepares pictures "
            "otherwise than seeonce does: install the version that seeonce names (pip install seeonce)."
        )
