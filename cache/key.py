"""What names an entry: the decoded picture, and the encoder with everything that changes results."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from cache.base.canonical_json import JsonObject
from cache.base.errors import StoreError

DIGEST_BYTES = 32
_MANY_BYTES = 1 << 20
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
_ENCODER = "seeonce 2026-11 encoder id, format 1"
_PIXELS = "seeonce 2026-11 pixel digest, format 1"
_WEIGHTS = "seeonce 2026-11 weights digest, format 1"
_ENTRY = "seeonce 2026-11 entry key, format 1"

Buffer = bytes | bytearray | memoryview | NDArray[Any]
Field = str | int | float | bool | bytes | tuple["Field", ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """256 bits. Digests of different kinds are never equal, whatever their bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes) or len(self.raw) != DIGEST_BYTES:
            raise ValueError(f"a digest is {DIGEST_BYTES} bytes, got {self.raw!r}")

    @property
    def hex(self) -> str:
        """64 lower-case hexadecimal digits."""
        return self.raw.hex()

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse exactly 64 lower-case hexadecimal digits.

        Raises:
            ValueError: for anything else.
        """
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) != DIGEST_BYTES or raw.hex() != text:  # there may be capitals or spaces
            raise ValueError(f"expected 64 lower-case hexadecimal digits, got {text[:80]!r}")
        return cls(raw)

    def __str__(self) -> str:
        return self.raw.hex()


@dataclass(frozen=True, slots=True)
class PixelDigest(Digest):
    """Names a decoded picture: its size and its RGB bytes."""


@dataclass(frozen=True, slots=True)
class WeightsDigest(Digest):
    """Names the weights of one vision tower with its mergers."""


@dataclass(frozen=True, slots=True)
class EncoderId(Digest):
    """Names an encoder: weights, architecture, preprocessing, compute type, epoch."""


@dataclass(frozen=True, slots=True)
class EntryKey(Digest):
    """Names an entry: one picture under one encoder."""


class FieldHasher:
    """BLAKE3 in key-derivation mode over fields, each as type tag, length (8 bytes, little), bytes.

    Tags: ``s`` str (UTF-8), ``i`` int (decimal), ``f`` float (IEEE 754 double, little),
    ``o`` bool, ``b`` bytes, ``(`` tuple (its length counts elements, which follow).
    """

    __slots__ = ("_hasher",)

    def __init__(self, context: str, *, num_bytes_expected: int = 0) -> None:
        """Start a digest in a domain of its own: ``context`` is hard-coded by the caller.

        ``num_bytes_expected`` from 1 MiB on takes every core; below, threads cost more than they give.
        The digest is the same.
        """
        max_threads = blake3.AUTO if num_bytes_expected >= _MANY_BYTES else 1
        self._hasher = blake3(derive_key_context=context, max_threads=max_threads)

    def add(self, field: Field) -> None:
        """Add one field; a tuple may be nested.

        Raises:
            TypeError: the field is of no supported type.
        """
        match field:
            case bool():
                self._frame(b"o", b"\x01" if field else b"\x00")
            case int():
                self._frame(b"i", str(int(field)).encode("ascii"))
            case float():
                self._frame(b"f", struct.pack("<d", field))
            case str():
                self._frame(b"s", field.encode("utf-8"))
            case bytes():
                self._frame(b"b", field)
            case tuple():
                self._hasher.update(b"(" + struct.pack("<Q", len(field)))
                for element in field:
                    self.add(element)
            case _:
                raise TypeError(f"cannot hash a field of type {type(field).__name__}")

    def add_all(self, fields: Sequence[Field]) -> None:
        """Add fields one after the other."""
        for field in fields:
            self.add(field)

    def add_buffer(self, buffer: Buffer) -> None:
        """Add the bytes of a C-contiguous buffer as one bytes field, without a copy."""
        view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        self._hasher.update(b"b" + struct.pack("<Q", view.nbytes))
        self._hasher.update(view.cast("B") if view.nbytes else b"")

    def digest(self) -> bytes:
        """Return 32 bytes; more fields may follow and give another digest."""
        return self._hasher.digest()

    def _frame(self, tag: bytes, payload: bytes) -> None:
        self._hasher.update(tag + struct.pack("<Q", len(payload)) + payload)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels become patches, resolved: no default is left to a library.

    ``min_pixels`` and ``max_pixels`` bound the resized picture; sizes are in pixels
    (``patch_size``), patches (``merge_size``) and frames (``temporal_patch_size``).
    """

    processor_class: str
    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    resample: str

    def __post_init__(self) -> None:
        # 0 and 0.0 mean the same to a processor: they must name the same encoder.
        object.__setattr__(self, "rescale_factor", float(self.rescale_factor))
        object.__setattr__(self, "image_mean", tuple(float(value) for value in self.image_mean))
        object.__setattr__(self, "image_std", tuple(float(value) for value in self.image_std))
        sizes = (self.min_pixels, self.max_pixels, self.patch_size, self.merge_size, self.temporal_patch_size)
        if min(sizes) < 1 or self.min_pixels > self.max_pixels:
            raise ValueError(f"preprocessing sizes must be positive and min <= max pixels, got {sizes}")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Everything that decides what an encoder makes of a picture.

    ``architecture`` is in it because the dense and the MoE vision tower compute different GELUs
    from the same weights, and ``num_heads`` because no weight shows it. ``quantization`` is
    canonical JSON or "none". ``strict`` is provenance, in the key only under ``--strict``.
    """

    architecture: str
    depth: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    weights: WeightsDigest
    quantization: str
    preprocessing: Preprocessing
    compute_dtype: str
    epoch: int
    strict: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "deepstack_visual_indexes", tuple(map(int, self.deepstack_visual_indexes)))
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype must be one of {COMPUTE_DTYPES}, got {self.compute_dtype!r}")
        if min(self.depth, self.hidden_size, self.num_heads, self.out_hidden_size) < 1:
            raise ValueError("depth, hidden_size, num_heads and out_hidden_size must be positive")

    @property
    def num_layers(self) -> int:
        """Arrays per entry: the merged tokens, then one per DeepStack layer."""
        return 1 + len(self.deepstack_visual_indexes)

    @property
    def encoder_id(self) -> EncoderId:
        """The digest of every field, in the order of the class."""
        return _encoder_id(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what ``record_to_json`` wrote.

        Raises:
            StoreError: for anything else.
        """
        spec = JsonObject(value, "encoder").record(cls, exactly=True)
        try:
            _encoder_id(spec)  # a text that is no Unicode cannot be hashed
        except ValueError as error:
            raise StoreError(f"encoder: {error}") from None
        return spec


@lru_cache(maxsize=64)
def _encoder_id(spec: EncoderSpec) -> EncoderId:
    hasher = FieldHasher(_ENCODER)
    for field in fields(spec):
        hasher.add(_hashed(getattr(spec, field.name)))
    return EncoderId(hasher.digest())


def _hashed(value: Any) -> Any:
    if isinstance(value, Preprocessing):
        return tuple(getattr(value, field.name) for field in fields(value))
    return value.raw if isinstance(value, Digest) else value


def pixel_digest(pixels: NDArray[np.uint8]) -> PixelDigest:
    """Name a decoded picture ``(height, width, 3)``, uint8 RGB, exactly as the live path sees it.

    Raises:
        ValueError: for another shape, another dtype or an empty picture.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"expected uint8 pixels (height, width, 3), got {pixels.dtype} {pixels.shape}")
    height, width, _ = pixels.shape
    hasher = FieldHasher(_PIXELS, num_bytes_expected=pixels.nbytes)
    hasher.add(width)
    hasher.add(height)
    hasher.add_buffer(np.ascontiguousarray(pixels))
    return PixelDigest(hasher.digest())


def weights_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer]]) -> WeightsDigest:
    """Name weights from a stream of (name, dtype, shape, bytes), names strictly ascending.

    Raises:
        ValueError: a name is not greater than the one before it.
    """
    hasher = FieldHasher(_WEIGHTS, num_bytes_expected=1 << 30)
    previous: str | None = None
    for name, dtype, shape, data in tensors:
        if previous is not None and name <= previous:
            raise ValueError(f"weight names must ascend strictly: {name!r} came after {previous!r}")
        previous = name
        hasher.add_all((name, dtype, tuple(int(size) for size in shape)))
        hasher.add_buffer(data)
    return WeightsDigest(hasher.digest())


def entry_key(pixels: PixelDigest, encoder: EncoderId) -> EntryKey:
    """Name the entry of one picture under one encoder.

    Raises:
        TypeError: digests of other kinds, for instance the two exchanged.
    """
    if not isinstance(pixels, PixelDigest) or not isinstance(encoder, EncoderId):
        raise TypeError(
            f"expected PixelDigest, EncoderId; got {type(pixels).__name__}, {type(encoder).__name__}"
        )
    hasher = FieldHasher(_ENTRY)
    hasher.add(pixels.raw)
    hasher.add(encoder.raw)
    return EntryKey(hasher.digest())
