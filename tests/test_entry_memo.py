"""Metadata that is recognised is read as metadata that is parsed, right or wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from store_samples import PROVENANCE, SPEC, pixels

from cache.base.canonical_json import SEAL_FIELD, UNSEALED, seal
from cache.entry import DamagedError, EntryInfo, _known, decode_entry, encode_entry, recall
from cache.key import EntryKey, entry_key


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    _known.clear()
    yield
    _known.clear()


def info(number: int) -> EntryInfo:
    digest = pixels(number)
    key = entry_key(digest, SPEC.encoder_id)
    return EntryInfo(
        key=key,
        shape=(4, 6, 8),
        dtype="bfloat16",
        grid_thw=(1, 4, 6),
        merge_size=2,
        pixels=digest,
        encoder=SPEC,
        crc32c=number,
        blake3=bytes([number] * 32),
        provenance=PROVENANCE,
        created_at="2026-11-21T09:30:00Z",
    )


def changed(number: int, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return sealed metadata of an entry, with something changed."""
    document = json.loads(encode_entry(info(number)))
    document["attributes"]["seeonce"][SEAL_FIELD] = UNSEALED
    change(document)
    return seal(document)


def outcome(raw: bytes, key: EntryKey) -> EntryInfo | str:
    try:
        return decode_entry(raw, key)
    except DamagedError as error:
        return str(error)


def attribute(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["attributes"]["seeonce"].update({name: value})


CHANGES = [
    attribute("key", "0" * 64),
    attribute("key", "0" * 63),
    attribute("pixels", "0" * 64),
    attribute("pixels", 7),
    attribute("crc32c", 2**32 - 1),
    attribute("crc32c", -1),
    attribute("crc32c", "1"),
    attribute("crc32c", 1.5),
    attribute("blake3", "F" * 64),
    attribute("created_at", ""),
    attribute("created_at", '","key":"'),
    attribute("dtype", "float16"),
    attribute("dtype", '"pixels":"' + "0" * 64),
    attribute("format", 2),
    attribute("grid_thw", [1, 6, 4]),
    attribute("encoder_id", "0" * 64),
    attribute("more", 1),
    attribute("layers", []),
    lambda document: document["attributes"]["seeonce"]["encoder"].update(epoch=2),
    lambda document: document["attributes"]["seeonce"]["provenance"].update(chip='","key":"' + "0" * 64),
    lambda document: document.update(shape=[4, 8, 6]),
    lambda document: document.update(fill_value=1),
    lambda document: document["attributes"].update(other={"seeonce": 1}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_the_outcome_is_that_of_parsing(
    change: Callable[[dict[str, Any]], object],
) -> None:
    raw, key = changed(2, change), info(2).key
    parsed = outcome(raw, key)
    _known.clear()
    decode_entry(encode_entry(info(1)), info(1).key)
    assert outcome(raw, key) == parsed
    assert outcome(encode_entry(info(3)), info(3).key) == info(3)


def test_fields_of_another_object_are_not_taken_for_the_entrys_own() -> None:
    """Fields of the same form before the real ones: recognised alone, they would hide what these say."""

    def with_decoy(of: int) -> bytes:
        fields = json.loads(encode_entry(info(of)))["attributes"]["seeonce"]
        decoy = {name: fields[name] for name in ("blake3", "crc32c", "created_at", "format", "key", "layers")}

        def change(document: dict[str, Any]) -> None:
            document["attributes"]["a"] = {"seeonce": decoy}
            document["attributes"]["seeonce"]["pixels"] = fields["pixels"]

        return changed(1, change)

    outcome(with_decoy(1), info(1).key)
    assert isinstance(outcome(with_decoy(2), info(2).key), str)


def test_entries_of_one_encoder_and_size_are_recognised() -> None:
    decode_entry(encode_entry(info(1)), info(1).key)
    assert recall(encode_entry(info(2)), info(2).key) == info(2)
    other = replace(info(2), provenance=replace(PROVENANCE, chip="another"))
    assert recall(encode_entry(other), other.key) is None


def test_a_flipped_bit_is_found_in_metadata_that_is_recognised() -> None:
    decode_entry(encode_entry(info(1)), info(1).key)
    raw = encode_entry(info(2))
    for position in range(0, 8 * len(raw), 7):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        assert isinstance(outcome(bytes(flipped), info(2).key), str)


def test_only_so_many_are_remembered() -> None:
    for number in range(600):
        one = replace(info(1), provenance=replace(PROVENANCE, chip=str(number)))
        decode_entry(encode_entry(one), one.key)
    assert len(_known) <= 256
