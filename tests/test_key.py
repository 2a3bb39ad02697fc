"""The key: what names an entry, and the bugs of others that it must not repeat."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import PREPROCESSING, SPEC

from cache.base.canonical_json import record_to_json
from cache.base.errors import StoreError
from cache.key import (
    EncoderId,
    EncoderSpec,
    EntryKey,
    Field,
    FieldHasher,
    PixelDigest,
    Preprocessing,
    WeightsDigest,
    entry_key,
    pixel_digest,
    weights_digest,
)

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SCALARS = st.one_of(
    st.text(max_size=6), st.integers(), st.floats(allow_nan=False), st.booleans(), st.binary(max_size=6)
)
FIELDS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


def hashed(values: list[Field]) -> bytes:
    hasher = FieldHasher("test")
    hasher.add_all(values)
    return hasher.digest()


def exactly(value: Any) -> Any:
    """Tell 1 from 1.0 and True, and 0.0 from -0.0, which Python holds equal."""
    if isinstance(value, list | tuple):
        return [exactly(item) for item in value]
    return type(value).__name__, repr(value)


def test_golden_digests_never_change() -> None:
    encoder_id = SPEC.encoder_id
    assert pixel_digest(PICTURE).hex == "452e142d462c7b238813191e9192b2ea7565d4b77c5c6cc45c192b9533edde5d"
    assert encoder_id.hex == "10e33da131d821eaa0a207a6c3f5510b625365d377aa2fca725f9f6409781217"
    assert (
        entry_key(pixel_digest(PICTURE), encoder_id).hex
        == "2f8b6524180bd8c49c044576b254eb3c856de7378978eacabd80181dd31573c5"
    )
    tensors = [("a.bias", "F32", (2,), b"12345678"), ("b.weight", "BF16", (1, 2), b"1234")]
    assert weights_digest(tensors).hex == "bf1e106e9ec987e824447de9a3acde8ecb270ace08e77609945f28331e816d6c"


@given(st.lists(FIELDS, max_size=4), st.lists(FIELDS, max_size=4))
def test_two_different_lists_of_fields_never_collide(left: list[Field], right: list[Field]) -> None:
    assert (hashed(left) == hashed(right)) == (exactly(left) == exactly(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["1"], [1]),
        ([1], [True]),
        ([1], [1.0]),
        ([(1, 2)], [1, 2]),
        ([(1,), 2], [(1, 2)]),
        (["a"], [b"a"]),
        ([0.0], [-0.0]),
    ],
)
def test_framing_tells_fields_apart(left: list[Field], right: list[Field]) -> None:
    assert hashed(left) != hashed(right)


def test_a_transposed_picture_is_another_picture() -> None:
    assert pixel_digest(np.zeros((4, 6, 3), np.uint8)) != pixel_digest(np.zeros((6, 4, 3), np.uint8))


def test_a_reshaped_picture_of_the_same_bytes_is_another_picture() -> None:
    assert pixel_digest(PICTURE) != pixel_digest(PICTURE.reshape(2, 12, 3))


def test_a_picture_is_named_by_its_pixels_not_by_their_order_in_memory() -> None:
    assert pixel_digest(np.asfortranarray(PICTURE)) == pixel_digest(PICTURE)


def test_a_large_picture_hashed_in_threads_has_the_same_digest_as_its_fields() -> None:
    large = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    hasher = FieldHasher("seeonce 2026-11 pixel digest, format 1")
    hasher.add_all([700, 700, large.tobytes()])
    assert pixel_digest(large).raw == hasher.digest()


@pytest.mark.parametrize(
    "wrong", [PICTURE.astype(np.float32), PICTURE[:, :, :2], PICTURE[0], np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_rgb_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        pixel_digest(wrong)


def test_digests_are_not_truncated() -> None:
    assert len(entry_key(pixel_digest(PICTURE), SPEC.encoder_id).raw) == 32
    with pytest.raises(ValueError, match="32 bytes"):
        EntryKey(b"short")


def test_digests_of_different_kinds_are_never_equal() -> None:
    raw = bytes(32)
    assert len({PixelDigest(raw), WeightsDigest(raw), EncoderId(raw), EntryKey(raw)}) == 4


def test_the_two_parts_of_a_key_cannot_be_exchanged() -> None:
    pixels, encoder = pixel_digest(PICTURE), SPEC.encoder_id
    with pytest.raises(TypeError, match="expected PixelDigest, EncoderId"):
        entry_key(encoder, pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, " " + "0" * 63, "0x" + "0" * 62]
)
def test_only_64_lower_case_digits_are_a_digest(text: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case"):
        EntryKey.from_hex(text)


SPEC_CHANGES: dict[str, Any] = {
    "architecture": "qwen3_vl_moe",
    "depth": 5,
    "hidden_size": 64,
    "num_heads": 4,
    "out_hidden_size": 16,
    "num_position_embeddings": 2305,
    "deepstack_visual_indexes": (1, 3, 2),
    "weights": WeightsDigest(bytes(32)),
    "quantization": '{"bits":4,"group_size":64}',
    "preprocessing": replace(PREPROCESSING, max_pixels=1_000_000),
    "compute_dtype": "float32",
    "epoch": 2,
    "strict": "mlx 0.32",
}
PREPROCESSING_CHANGES: dict[str, Any] = {
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 3_000_000,
    "patch_size": 14,
    "merge_size": 4,
    "temporal_patch_size": 1,
    "do_rescale": False,
    "rescale_factor": 1 / 256,
    "do_normalize": False,
    "image_mean": (0.5, 0.5, 0.4),
    "image_std": (0.5, 0.4, 0.5),
    "resample": "bilinear",
}


@pytest.mark.parametrize("name", [field.name for field in fields(EncoderSpec)])
def test_every_field_of_the_encoder_is_in_the_key(name: str) -> None:
    assert replace(SPEC, **{name: SPEC_CHANGES[name]}).encoder_id != SPEC.encoder_id


@pytest.mark.parametrize("name", [field.name for field in fields(Preprocessing)])
def test_every_field_of_the_preprocessing_is_in_the_key(name: str) -> None:
    changed = replace(PREPROCESSING, **{name: PREPROCESSING_CHANGES[name]})
    assert replace(SPEC, preprocessing=changed).encoder_id != SPEC.encoder_id


def test_zero_and_zero_point_zero_name_the_same_preprocessing() -> None:
    whole = replace(PREPROCESSING, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    real = replace(PREPROCESSING, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    assert replace(SPEC, preprocessing=whole).encoder_id == replace(SPEC, preprocessing=real).encoder_id


def test_an_encoder_survives_json() -> None:
    assert EncoderSpec.from_json(record_to_json(SPEC)) == SPEC


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("num_heads"),
        lambda document: document.update(extra=1),
        lambda document: document.update(depth="4"),
        lambda document: document.update(depth=True),
        lambda document: document.update(weights="00"),
        lambda document: document.update(compute_dtype="int8"),
        lambda document: document.update(preprocessing=[]),
        lambda document: document.update(deepstack_visual_indexes=[1.5]),
    ],
)
def test_nonsense_is_no_encoder(spoil: Callable[[dict[str, Any]], None]) -> None:
    document: dict[str, Any] = record_to_json(SPEC)
    spoil(document)
    with pytest.raises(StoreError):
        EncoderSpec.from_json(document)


def test_weights_must_come_in_ascending_order_of_names() -> None:
    tensor = ("F32", (1,), b"1234")
    with pytest.raises(ValueError, match="ascend"):
        weights_digest([("b", *tensor), ("a", *tensor)])
    with pytest.raises(ValueError, match="ascend"):
        weights_digest([("a", *tensor), ("a", *tensor)])


@pytest.mark.parametrize(
    "changed", [("a", "F16", (2, 1), b"1234"), ("a", "F32", (1, 2), b"1234"), ("b", "F32", (2, 1), b"1234")]
)
def test_name_dtype_and_shape_of_a_weight_count(changed: tuple[str, str, tuple[int, ...], bytes]) -> None:
    assert weights_digest([changed]) != weights_digest([("a", "F32", (2, 1), b"1234")])


def test_weights_of_any_buffer_have_the_digest_of_their_bytes() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert weights_digest([("a", "BF16", (2, 3), array)]) == weights_digest(
        [("a", "BF16", (2, 3), array.tobytes())]
    )
