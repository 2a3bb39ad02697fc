"""Pictures become the values that mlx-vlm's processor gives, bit for bit, and are never held as such."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLImageProcessor
from PIL import Image

from cache.base.errors import CheckpointError, InputError
from cache.base.home import Home
from cache.pixel_index import PixelIndex
from checkpoint.folder import find_checkpoint
from checkpoint.identity import _preprocessing, encoder_spec
from precompute.encoder import VisionEncoder, pixel_values
from precompute.patches import cut_into_patches, num_tokens, resized_size, value_table

DTYPES = (mx.float32, mx.bfloat16, mx.float16)


def _processor(rng: np.random.Generator) -> Qwen3VLImageProcessor:
    """Make a processor with the limits of a checkpoint, or with others that it could have."""
    patch, merge = int(rng.choice([14, 16, 8])), int(rng.choice([1, 2, 2, 3]))
    least = (patch * merge) ** 2 * int(rng.integers(1, 5))
    return Qwen3VLImageProcessor(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=int(rng.choice([1, 2, 2])),
        min_pixels=least,
        max_pixels=least * int(rng.integers(1, 80)),
        do_rescale=bool(rng.random() < 0.9),
        do_normalize=bool(rng.random() < 0.9),
        image_mean=None if rng.random() < 0.5 else list(rng.uniform(0.2, 0.8, 3)),
        image_std=None if rng.random() < 0.5 else list(rng.uniform(0.2, 0.8, 3)),
    )


def _picture(rng: np.random.Generator) -> Image.Image:
    short = int(rng.integers(1, 180))
    long = min(600, int(short * rng.choice([1, 1.3, 2.5, 20, 199])))
    width, height = (short, max(1, long)) if rng.random() < 0.5 else (max(1, long), short)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    smooth = np.add.outer(np.arange(height), np.arange(width))[..., None] * [1, 2, 3] % 256
    return Image.fromarray(noise if rng.random() < 0.5 else smooth.astype(np.uint8))


@pytest.mark.parametrize("num", [40, pytest.param(2000, marks=pytest.mark.campaign)])
def test_the_values_are_those_of_mlx_vlms_processor_bit_for_bit(num: int) -> None:
    for seed in range(num):
        rng = np.random.default_rng(seed)
        processor, picture = _processor(rng), _picture(rng)
        live, preprocessing = processor(images=[picture]), _preprocessing(processor)
        patches = cut_into_patches(picture, preprocessing)
        assert list(patches.grid_thw) == live["image_grid_thw"][0].tolist(), seed
        dtype = DTYPES[seed % 3]
        want = mx.array(live["pixel_values"]).astype(dtype)
        table = mx.array(value_table(preprocessing)).astype(dtype)
        got = pixel_values(patches, table, preprocessing.temporal_patch_size)
        assert got.dtype == want.dtype
        assert np.array(got.view(mx.uint8)).tobytes() == np.array(want.view(mx.uint8)).tobytes(), seed
        assert num_tokens(*picture.size, preprocessing) == processor.num_image_tokens(*picture.size[::-1])


def test_a_shape_that_the_model_does_not_take_is_refused_as_mlx_vlm_refuses_it() -> None:
    preprocessing = _preprocessing(Qwen3VLImageProcessor())
    assert resized_size(2000, 10, preprocessing)
    with pytest.raises(InputError, match=r"2001x10 cannot be resized: .* up to 200 times as long as wide"):
        resized_size(2001, 10, preprocessing)
    with pytest.raises(ValueError, match="200"):
        Qwen3VLImageProcessor().num_image_tokens(10, 2001)
    assert num_tokens(2001, 10, preprocessing) == 0


def test_patches_are_an_eighth_of_what_the_tower_takes() -> None:
    processor = Qwen3VLImageProcessor()
    picture = Image.new("RGB", (640, 400))
    patches = cut_into_patches(picture, _preprocessing(processor))
    assert patches.pixels.nbytes * 8 == processor(images=[picture])["pixel_values"].nbytes


def test_another_processor_in_mlx_vlm_is_noticed_before_anything_is_encoded(
    plain: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = find_checkpoint(str(plain), print)
    with PixelIndex(Home(home)) as index:
        spec = encoder_spec(checkpoint, index)
    VisionEncoder(checkpoint, spec)
    monkeypatch.setattr(Image, "BICUBIC", Image.Resampling.BILINEAR)
    with pytest.raises(CheckpointError, match=r"mlx-vlm \d.* prepares pictures otherwise"):
        VisionEncoder(checkpoint, spec)
