"""mlx-vlm's vision encoder: a picture becomes features exactly as on mlx-vlm's live path.

It relies on the following, each held by a contract test: ``model.vision_tower(pixel_values, grid_thw)``
returns merged tokens and a list of DeepStack features; the live path casts ``pixel_values`` to the dtype
of ``patch_embed``; ``Qwen3VLImageProcessor(images)`` gives ``pixel_values`` and ``image_grid_thw`` per image.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.base.errors import InputError
from cache.base.text import megabytes
from cache.entry import STORED_DTYPES, Features
from cache.key import EncoderSpec
from checkpoint import backend
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder
from checkpoint.identity import image_processor
from checkpoint.loading import cast, load_model
from sources.pixels import SCREEN_PIXELS, ImageHeader, read_header
from sources.recording import Frame


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """One preprocessed picture: ``pixel_values`` float32 ``(num_patches, channels * t * p * p)``."""

    pixel_values: NDArray[np.float32]
    grid_thw: tuple[int, int, int]


class Preprocessor:
    """Resizes, normalises and patches pictures with mlx-vlm's own processor. Safe to share by threads."""

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, spec: EncoderSpec) -> None:
        """Build the processor of the checkpoint with the limits of ``spec``."""
        self._processor = image_processor(folder, config)
        self._processor.min_pixels = spec.preprocessing.min_pixels
        self._processor.max_pixels = spec.preprocessing.max_pixels

    def patches(self, image: Image.Image) -> Patches:
        """Preprocess one RGB picture.

        Raises:
            InputError: its shape is beyond what the processor takes.
        """
        try:
            inputs = self._processor(images=[image])
        except ValueError as error:
            size = f"{image.width}x{image.height}"
            raise InputError(f"a picture of {size} cannot be resized: {error}") from error
        time, height, width = (int(size) for size in inputs["image_grid_thw"][0])
        return Patches(inputs["pixel_values"], (time, height, width))

    def num_tokens(self, width: int, height: int) -> int:
        """Return how many merged tokens a picture of this size gives."""
        try:
            return int(self._processor.num_image_tokens(height, width))
        except ValueError:
            return 0


class VisionEncoder:
    """The vision tower, merger and DeepStack mergers of one checkpoint, in the compute dtype of ``spec``.

    Holds no language weights: they are never evaluated. Each picture is encoded alone, which is
    repeatable bit for bit; encoding several together changes results by about 3e-5.
    """

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, spec: EncoderSpec) -> None:
        """Load and evaluate the vision weights.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        self._mx = backend.import_mlx()
        self.spec = spec
        self.preprocessor = Preprocessor(folder, config, spec)
        self._tower = load_model(folder, config).vision_tower
        cast(self._tower, spec.compute_dtype)
        self._mx.eval(self._tower.parameters())
        self.provenance = backend.provenance()

    def preprocess(self, image: Image.Image) -> Patches:
        """Preprocess one RGB picture; uses no MLX, so several threads may.

        Raises:
            InputError: its shape is beyond what the processor takes.
        """
        return self.preprocessor.patches(image)

    def encode(self, patches: Patches) -> Features:
        """Encode one preprocessed picture.

        Returns features ``(1 + num_deepstack, num_tokens, hidden)`` in the compute dtype.
        """
        mx = self._mx
        dtype = self._tower.patch_embed.proj.weight.dtype
        merged_tokens, deepstack = self._tower(
            mx.array(patches.pixel_values).astype(dtype), mx.array([patches.grid_thw])
        )
        stacked = mx.stack([merged_tokens, *deepstack])
        mx.eval(stacked)
        return Features(
            array=_to_numpy(mx, stacked, self.spec.compute_dtype),
            dtype=self.spec.compute_dtype,
            grid_thw=patches.grid_thw,
            merge_size=self.spec.preprocessing.merge_size,
        )


def _to_numpy(mx: Any, array: Any, dtype: str) -> NDArray[Any]:
    """Copy to numpy bit for bit; bfloat16, which numpy lacks, as the uint16 of its bits."""
    raw = array.view(mx.uint16) if dtype == "bfloat16" else array
    return np.ascontiguousarray(np.array(raw), dtype=STORED_DTYPES[dtype])


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
        return (
            f"{self.num_frames} frames to look at, about {self.num_tokens // per_frame:,} tokens and "
            f"{megabytes(self.num_bytes // per_frame)} each; writes at most {megabytes(self.num_bytes)}."
        )


def estimate(frames: Sequence[Frame], spec: EncoderSpec, preprocessor: Preprocessor) -> Estimate:
    """Return what ``frames`` cost at most under ``spec``; those that cannot be read cost nothing."""
    headers = list(_headers(frames))
    num_tokens = sum(preprocessor.num_tokens(header.width, header.height) for header in headers)
    bytes_per_token = spec.num_layers * spec.out_hidden_size * STORED_DTYPES[spec.compute_dtype].itemsize
    return Estimate(
        len(frames),
        num_tokens,
        num_tokens * bytes_per_token,
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
