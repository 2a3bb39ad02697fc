"""What an entry is: the features of one frame under one encoder, and what is known about them.

Owns: the types and what makes them valid. Does not own: their text form (``cache.entry_json``),
their place on disk (``cache.store``).
"""

from dataclasses import dataclass, fields
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache.canonical_json import JsonObject, JsonValue
from cache.errors import StoreError
from cache.key import EncoderId, EncoderSpec, EntryKey, PixelDigest

# bfloat16 is no numpy or zarr 3.1 type: its bits are kept in uint16.
STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
MAX_ENTRY_BYTES = 4 << 30


class DamagedError(StoreError):
    """An entry is not what its key promises: it becomes a miss, and its frame is encoded again."""


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

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: for anything else.
        """
        document = JsonObject(value, "provenance").only(_PROVENANCE_FIELDS)
        return cls(
            mlx=document.text("mlx"),
            mlx_vlm=document.text("mlx_vlm"),
            seeonce=document.text("seeonce"),
            device=document.text("device"),
            chip=document.text("chip"),
            host_os=document.text("host_os"),
        )


_PROVENANCE_FIELDS = frozenset(field.name for field in fields(Provenance))


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


@dataclass(frozen=True, slots=True)
class EntryProblem:
    """What a full check found wrong with an entry; ``missing`` when there is none of that key."""

    key: EntryKey
    reason: str
    missing: bool = False
