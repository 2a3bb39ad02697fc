"""mlx-vlm's vision encoder: a picture becomes features exactly as on mlx-vlm's live path.

It relies on the following, each held by a contract test: ``model.vision_tower(pixel_values, grid_thw)``
returns merged tokens and a list of DeepStack features; the live path casts ``pixel_values`` to the dtype
of ``patch_embed``; ``Qwen3VLImageProcessor`` gives the values that ``patches.py`` gives, which is tried
whenever the encoder is loaded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache.base.errors import CheckpointError, InputError
from cache.base.text import megabytes
from cache.entry import STORED_DTYPES, Features, bytes_per_token
from cache.key import EncoderSpec, Preprocessing
from checkpoint import backend
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder
from checkpoint.identity import image_processor
from checkpoint.loading import cast, load_model
from precompute.patches import Patches, cut_into_patches, num_tokens, value_table
from sources.pixels import SCREEN_PIXELS, ImageHeader, read_header
from sources.recording import Frame


class VisionEncoder:
    """The vision tower, merger and DeepStack mergers of one checkpoint, in the compute dtype of ``spec``.

    Holds no language weights: they are never evaluated. Each picture is encoded alone, which is
    repeatable bit for bit; encoding several together changes results by about 3e-5. One thread alone uses it.
    """

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, spec: EncoderSpec) -> None:
        """Load and evaluate the vision weights.

        Raises:
            CheckpointError: the checkpoint does not load, or mlx-vlm's processor gives other values.
        """
        _require_processors_values(image_processor(folder, config), spec.preprocessing)
        self._mx = mx = backend.import_mlx()
        self.spec = spec
        self._tower = load_model(folder, config).vision_tower
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of frames that are not known to be stored. ``num_tokens`` and ``num_bytes`` are sums.

    ``num_huge`` frames are larger than any screen, ``num_animated`` show the first of several pictures.
    """

    num_frames: int
    num_tokens: int
    num_bytes: int
    num_huge: int = 0
    num_animated: int = 0

    def __str__(self) -> str:
        """Say it in one line, per frame and in all."""
        per_frame = max(1, self.num_frames)
        frames = f"{self.num_frames} frame{'s' * (self.num_frames != 1)}"
        return (
            f"{frames} to look at, about {self.num_tokens // per_frame:,} tokens and "
            f"{megabytes(self.num_bytes // per_frame)} each; writes at most {megabytes(self.num_bytes)}."
        )


def estimate(frames: Sequence[Frame], spec: EncoderSpec) -> Estimate:
    """Return what ``frames`` cost at most under ``spec``; those that cannot be read cost nothing."""
    headers = list(_headers(frames))
    tokens = sum(num_tokens(header.width, header.height, spec.preprocessing) for header in headers)
    return Estimate(
        len(frames),
        tokens,
        tokens * bytes_per_token(spec),
        num_huge=sum(header.width * header.height > SCREEN_PIXELS for header in headers),
        num_animated=sum(header.has_more for header in headers),
    )


def _headers(frames: Iterable[Frame]) -> Iterator[ImageHeader]:
    """Yield the size of each readable frame; the frames of one video are of one size."""
    of_video: dict[str, ImageHeader] = {}
    for frame in frames:
        with suppress(InputError):
            if not frame.stamp.position:
                yield read_header(Path(frame.stamp.path))
            else:
                if frame.stamp.path not in of_video:
                    of_video[frame.stamp.path] = ImageHeader(*frame.read().size, has_more=False)
                yield of_video[frame.stamp.path]
