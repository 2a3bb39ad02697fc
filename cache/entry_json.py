"""The text form of an entry's zarr.json: an ordinary zarr v3 array with our attributes.

Owns: the fields (docs/format.md, "The entry") and what is refused before anything is allocated.
Does not own: the seal over the text (``cache.canonical_json``), the payload (``cache.reading``).
"""

import json
from functools import lru_cache
from math import prod

from cache.canonical_json import SEAL_FIELD, UNSEALED, JsonObject, JsonValue, check_seal, parse, seal
from cache.digest import Digest
from cache.entry import MAX_ENTRY_BYTES, STORED_DTYPES, DamagedError, EntryInfo, Provenance, num_merged_tokens
from cache.entry_memo import recall, remember
from cache.errors import StoreError
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest, entry_key

METADATA_NAME = "zarr.json"
CHUNK_NAME = "c.0.0.0"
CHECKSUM_BYTES = 4
MAX_METADATA_BYTES = 256 << 10
ENTRY_FORMAT = 1

_ZARR_TYPES = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
_OURS = frozenset({"seeonce"})
_ATTRIBUTES = frozenset(
    {"format", "key", "dtype", "layers", "grid_thw", "merge_size", "pixels", "encoder_id", "encoder"}
    | {"crc32c", "blake3", "provenance", "created_at", SEAL_FIELD}
)


def encode_entry(info: EntryInfo) -> bytes:
    """Return the bytes of an entry's zarr.json.

    Raises:
        ValueError: a text in it makes the file larger than a reader would accept.
    """
    raw = seal({**_zarr_document(info.shape, info.dtype), "attributes": {"seeonce": _attributes(info)}})
    if len(raw) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata has {len(raw)} bytes, at most {MAX_METADATA_BYTES} are allowed")
    return raw


def decode_entry(raw: bytes, key: EntryKey) -> EntryInfo:
    """Read the bytes of the zarr.json of the entry ``key``.

    Raises:
        DamagedError: a flipped bit, another entry's file, or nonsense.
    """
    try:
        check_seal(raw, METADATA_NAME)
        info = recall(raw, key)
        if info is None:
            info = _decode(raw, key)
            remember(raw, info)
        return info
    except DamagedError:
        raise
    except (StoreError, ValueError) as error:
        raise DamagedError(str(error)) from None


def _decode(raw: bytes, key: EntryKey) -> EntryInfo:
    document = parse(raw, METADATA_NAME)
    attributes = document.child("attributes").only(_OURS).child("seeonce").only(_ATTRIBUTES)
    if (found := attributes.text("key")) != key.hex:
        raise DamagedError(f"the folder is {key}, its metadata is of {found}")
    if (version := attributes.integer("format")) != ENTRY_FORMAT:
        raise DamagedError(f"expected entry format {ENTRY_FORMAT}, got {version}")
    info = EntryInfo(
        key=key,
        shape=_triple(document.integers("shape")),
        dtype=attributes.text("dtype"),
        grid_thw=_triple(attributes.integers("grid_thw")),
        merge_size=attributes.integer("merge_size"),
        pixels=PixelDigest.from_hex(attributes.text("pixels")),
        encoder=_encoder(_encoder_text(raw)),
        crc32c=attributes.integer("crc32c"),
        blake3=Digest.from_hex(attributes.text("blake3")).raw,
        provenance=Provenance.from_json(attributes.raw("provenance")),
        created_at=attributes.text("created_at"),
    )
    _check(info, EncoderId.from_hex(attributes.text("encoder_id")))
    _check_zarr(document, info)
    if attributes.raw("layers") != layer_names(info.shape[0]):
        raise DamagedError(f"layers should be {layer_names(info.shape[0])}")
    return info


def _encoder_text(raw: bytes) -> bytes:
    # Quotation marks inside strings are escaped, so these two are the real fields.
    _, found, rest = raw.partition(b'"encoder":')
    text, closed, _ = rest.partition(b',"encoder_id":')
    if not (found and closed):
        raise DamagedError(f"{METADATA_NAME}: no encoder")
    return text


@lru_cache(maxsize=64)
def _encoder(text: bytes) -> EncoderSpec:
    # Thousands of entries share one encoder: reading it once makes ``Store.has`` cheaper.
    return EncoderSpec.from_json(json.loads(text))


def _check(info: EntryInfo, encoder_id: EncoderId) -> None:
    if info.dtype not in STORED_DTYPES:
        raise DamagedError(f"unknown dtype {info.dtype!r}")
    if min(info.shape) < 1 or prod(info.shape) > MAX_ENTRY_BYTES or info.nbytes > MAX_ENTRY_BYTES:
        raise DamagedError(f"shape {info.shape} is not one of an entry of at most {MAX_ENTRY_BYTES} bytes")
    if info.num_tokens != (expected := num_merged_tokens(info.grid_thw, info.merge_size)):
        raise DamagedError(f"grid_thw {info.grid_thw} makes {expected} tokens, the shape is {info.shape}")
    if info.shape[0] != info.encoder.num_layers:
        raise DamagedError(f"the encoder gives {info.encoder.num_layers} layers, the shape is {info.shape}")
    if info.shape[2] != info.encoder.out_hidden_size:
        raise DamagedError(
            f"the encoder gives rows of {info.encoder.out_hidden_size}, the shape is {info.shape}"
        )
    if encoder_id != info.encoder_id or info.key != entry_key(info.pixels, encoder_id):
        raise DamagedError(f"the key {info.key} is not that of its pixels and encoder")


def _check_zarr(document: JsonObject, info: EntryInfo) -> None:
    # Other programs read by these fields alone: they must not tell another story than ours.
    expected = _zarr_document(info.shape, info.dtype)
    document.only(frozenset(expected) | {"attributes"})
    for name, value in expected.items():
        if document.raw(name) != value:
            raise DamagedError(
                f"{METADATA_NAME}: {name} should be {value}, got {str(document.raw(name))[:80]}"
            )


def _zarr_document(shape: tuple[int, int, int], dtype: str) -> dict[str, JsonValue]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": _ZARR_TYPES[dtype],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "fill_value": 0 if dtype == "bfloat16" else 0.0,
    }


def _attributes(info: EntryInfo) -> dict[str, JsonValue]:
    return {
        "format": ENTRY_FORMAT,
        "key": info.key.hex,
        "dtype": info.dtype,
        "layers": layer_names(info.shape[0]),
        "grid_thw": list(info.grid_thw),
        "merge_size": info.merge_size,
        "pixels": info.pixels.hex,
        "encoder_id": info.encoder_id.hex,
        "encoder": info.encoder.to_json(),
        "crc32c": info.crc32c,
        "blake3": info.blake3.hex(),
        "provenance": info.provenance.to_json(),
        "created_at": info.created_at,
        SEAL_FIELD: UNSEALED,
    }


def layer_names(num_layers: int) -> list[str]:
    """Name the layers of an entry in their order: ``merged``, ``deepstack.0``, …"""
    return ["merged", *(f"deepstack.{index}" for index in range(num_layers - 1))]


def _triple(values: tuple[int, ...]) -> tuple[int, int, int]:
    if len(values) != 3:
        raise DamagedError(f"expected three numbers, got {values[:8]}")
    return values[0], values[1], values[2]
