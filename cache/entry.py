"""What an entry is: the features of one frame under one encoder, and what is known about them."""

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.base.canonical_json import (
    SEAL_FIELD,
    UNSEALED,
    JsonObject,
    JsonValue,
    check_seal,
    parse,
    record_to_json,
    seal,
)
from cache.base.errors import StoreError
from cache.key import Digest, EncoderId, EncoderSpec, EntryKey, PixelDigest, entry_key

# bfloat16 is no numpy or zarr 3.1 type: its bits are kept in uint16.
STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
MAX_ENTRY_BYTES = 4 << 30
METADATA_NAME = "zarr.json"
CHUNK_NAME = "c.0.0.0"
CHECKSUM_BYTES = 4
MAX_METADATA_BYTES = 256 << 10
ENTRY_FORMAT = 1
_ZARR_TYPES = {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}
_OURS = frozenset({"seeonce"})


class DamagedError(StoreError):
    """An entry is not what its key promises: it becomes a miss, and its frame is encoded again.

    ``identity`` is the (device, inode) of its folder, which tells it from one that replaces it meanwhile.
    """

    identity: tuple[int, int] | None = None


def checksum(crc32c: int) -> NDArray[np.uint8]:
    """Return the bytes at the end of a chunk."""
    return np.frombuffer(crc32c.to_bytes(CHECKSUM_BYTES, "little"), np.uint8)


def num_merged_tokens(grid_thw: tuple[int, int, int], merge_size: int) -> int:
    """Return how many tokens a grid of patches is merged into.

    Raises:
        ValueError: the grid is not positive or not divisible by ``merge_size``.
    """
    if len(grid_thw) != 3 or min(grid_thw) < 1 or merge_size < 1:
        raise ValueError(f"grid_thw must be three positive numbers, got {grid_thw} merged by {merge_size}")
    _, height, width = grid_thw
    if height % merge_size or width % merge_size:
        raise ValueError(f"grid_thw {grid_thw} is not divisible by merge_size {merge_size}")
    return prod(grid_thw) // merge_size**2


def bytes_per_token(spec: EncoderSpec) -> int:
    """Return what one merged token takes in an entry, DeepStack layers included."""
    return spec.num_layers * spec.out_hidden_size * STORED_DTYPES[spec.compute_dtype].itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Merged tokens and DeepStack of one frame.

    ``array`` is ``(1 + num_deepstack, num_tokens, hidden)``, merged tokens first, C-contiguous:
    uint16 (bfloat16 viewed), float16 or float32, as ``dtype`` says. ``grid_thw`` counts patches.
    """

    array: NDArray[Any]
    dtype: str
    grid_thw: tuple[int, int, int]
    merge_size: int

    def __post_init__(self) -> None:
        if self.dtype not in STORED_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(STORED_DTYPES)}, got {self.dtype!r}")
        if self.array.dtype != STORED_DTYPES[self.dtype]:
            raise ValueError(
                f"{self.dtype} is stored as {STORED_DTYPES[self.dtype]}, the array is {self.array.dtype}"
            )
        if self.array.ndim != 3 or not self.array.flags.c_contiguous or self.array.size == 0:
            raise ValueError(
                f"expected a C-contiguous (layers, num_tokens, hidden) array, got {self.array.shape}"
            )
        if self.array.nbytes > MAX_ENTRY_BYTES:
            raise ValueError(f"an entry has at most {MAX_ENTRY_BYTES} bytes, got {self.array.nbytes}")
        expected = num_merged_tokens(self.grid_thw, self.merge_size)
        if self.num_tokens != expected:
            raise ValueError(
                f"grid_thw {self.grid_thw} makes {expected} tokens, the array has {self.num_tokens}"
            )

    @property
    def num_tokens(self) -> int:
        """Rows of each layer."""
        return int(self.array.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return int(self.array.nbytes)

    @property
    def merged_tokens(self) -> NDArray[Any]:
        """What the merger gave, ``(num_tokens, hidden)``."""
        merged: NDArray[Any] = self.array[0]
        return merged

    @property
    def deepstack(self) -> NDArray[Any]:
        """The DeepStack layers, ``(num_deepstack, num_tokens, hidden)``; no layers for some models."""
        return self.array[1:]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What computed an entry: versions, device, chip, host system. Not part of the key."""

    mlx: str
    mlx_vlm: str
    seeonce: str
    device: str
    chip: str
    host_os: str


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What an entry's zarr.json says; the payload itself is not part of it.

    ``crc32c`` and ``blake3`` (32 bytes) are over the payload: the chunk without its own checksum.
    """

    key: EntryKey
    shape: tuple[int, int, int]
    dtype: str
    grid_thw: tuple[int, int, int]
    merge_size: int
    pixels: PixelDigest
    encoder: EncoderSpec
    crc32c: int
    blake3: bytes
    provenance: Provenance
    created_at: str

    @property
    def encoder_id(self) -> EncoderId:
        """The encoder that made it."""
        return self.encoder.encoder_id

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return prod(self.shape) * STORED_DTYPES[self.dtype].itemsize

    @property
    def num_tokens(self) -> int:
        """Rows of each layer."""
        return self.shape[1]


_ATTRIBUTES = frozenset(field.name for field in fields(EntryInfo) if field.name != "shape") | {
    "format", "layers", "encoder_id", SEAL_FIELD,
}  # fmt: skip


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
        return _decode(raw, key)
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
        shape=document.triple("shape"),
        dtype=attributes.text("dtype"),
        grid_thw=attributes.triple("grid_thw"),
        merge_size=attributes.integer("merge_size"),
        pixels=PixelDigest.from_hex(attributes.text("pixels")),
        encoder=_encoder(_encoder_text(raw)),
        crc32c=attributes.integer("crc32c"),
        blake3=Digest.from_hex(attributes.text("blake3")).raw,
        provenance=attributes.child("provenance").record(Provenance, exactly=True),
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
    document = record_to_json(info)
    del document["shape"]
    return {
        **document,
        "format": ENTRY_FORMAT,
        "layers": layer_names(info.shape[0]),
        "encoder_id": info.encoder_id.hex,
        "blake3": info.blake3.hex(),
        SEAL_FIELD: UNSEALED,
    }


def layer_names(num_layers: int) -> list[str]:
    """Name the layers of an entry in their order: ``merged``, ``deepstack.0``, …"""
    return ["merged", *(f"deepstack.{index}" for index in range(num_layers - 1))]
