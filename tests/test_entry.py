"""Entries: what features are valid, and what of a zarr.json is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from store_samples import GRID_THW, PROVENANCE, SPEC, features, pixels

from cache.base.canonical_json import JsonObject, canonical, parse, record_to_json, seal
from cache.base.errors import StoreError
from cache.entry import DamagedError, EntryInfo, Features, Provenance, decode_entry, encode_entry
from cache.key import entry_key

INFO = EntryInfo(
    key=entry_key(pixels(1), SPEC.encoder_id),
    shape=(4, 6, 8),
    dtype="bfloat16",
    grid_thw=GRID_THW,
    merge_size=2,
    pixels=pixels(1),
    encoder=SPEC,
    crc32c=7,
    blake3=bytes(32),
    provenance=PROVENANCE,
    created_at="2026-11-21T00:00:00Z",
)


def array(shape: tuple[int, ...] = (4, 6, 8), dtype: Any = np.uint16) -> Any:
    return np.zeros(shape, dtype)


def resealed(**changes: Any) -> bytes:
    """Return a zarr.json whose attributes were changed and whose seal is valid again."""
    document: dict[str, Any] = dict(parse(encode_entry(INFO), "sample")._fields)
    attributes = {**document["attributes"]["seeonce"], "metadata_digest": "0" * 64}
    for name, value in changes.items():
        target = attributes if name in attributes else document
        target[name] = value
    return seal({**document, "attributes": {"seeonce": attributes}})


def test_features_show_merged_tokens_and_deepstack_apart() -> None:
    whole = features()
    assert whole.num_tokens == 6
    assert np.array_equal(whole.merged_tokens, whole.array[0])
    assert whole.deepstack.shape == (3, 6, 8)


@pytest.mark.parametrize(
    "arguments",
    [
        (array((4, 5, 8)), "bfloat16", GRID_THW, 2),
        (array()[:, :, ::2], "bfloat16", GRID_THW, 2),
        (array(), "float32", GRID_THW, 2),
        (array(dtype=np.int64), "int64", GRID_THW, 2),
        (array((6, 8)), "bfloat16", GRID_THW, 2),
        (array(), "bfloat16", (1, 3, 8), 2),
        (array(), "bfloat16", (1, 4, 6), 0),
        (array((4, 0, 8)), "bfloat16", (1, 0, 6), 2),
    ],
)
def test_features_that_do_not_fit_together_are_refused(arguments: tuple[Any, str, Any, int]) -> None:
    with pytest.raises(ValueError, match=r"grid_thw|array|dtype"):
        Features(*arguments)


def test_metadata_survives_its_text() -> None:
    assert decode_entry(encode_entry(INFO), INFO.key) == INFO


def test_the_text_is_canonical() -> None:
    raw = encode_entry(INFO)
    assert canonical(parse(raw, "sample")._fields) == raw  # type: ignore[arg-type]


def test_every_flipped_bit_of_the_metadata_is_found() -> None:
    raw = encode_entry(INFO)
    for position in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedError):
            decode_entry(bytes(flipped), INFO.key)


def test_the_metadata_of_another_entry_is_found() -> None:
    with pytest.raises(DamagedError, match="its metadata is of"):
        decode_entry(encode_entry(INFO), entry_key(pixels(2), SPEC.encoder_id))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1 << 40, 1 << 40, 1 << 40]},
        {"shape": [4, -6, -8]},
        {"shape": [4, 6]},
        {"grid_thw": [1, 4, 8]},
        {"grid_thw": [1, 4, 6, 1]},
        {"dtype": "object"},
        {"pixels": pixels(2).hex},
        {"encoder": {**record_to_json(SPEC), "num_heads": 4}},
        {"encoder_id": "0" * 64},
        {"layers": ["merged", "deepstack.1", "deepstack.0", "deepstack.2"]},
        {"data_type": "float16"},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"fill_value": 1},
        {"more": 1},
        {"format": 2},
        {"key": "0" * 63},
        {"pixels": 7},
        {"crc32c": "7"},
        {"crc32c": 1.5},
        {"blake3": "F" * 64},
        {"provenance": {}},
        {"merge_size": 10**400},
    ],
)
def test_well_sealed_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DamagedError):
        decode_entry(resealed(**changes), INFO.key)


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b"[" * 100_000, b"\xff", b'{"a":NaN}', b"1" * 5000])
def test_what_is_no_metadata_is_damage_not_a_crash(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        decode_entry(raw, INFO.key)


def test_metadata_too_large_for_a_reader_is_not_written() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_entry(replace(INFO, created_at="x" * (256 << 10)))


def test_provenance_survives_json_and_refuses_nonsense() -> None:
    document = record_to_json(PROVENANCE)
    assert JsonObject(document, "").record(Provenance, exactly=True) == PROVENANCE
    for wrong in ({**document, "mlx": 1}, {**document, "more": ""}):
        with pytest.raises(StoreError):
            JsonObject(wrong, "").record(Provenance, exactly=True)
