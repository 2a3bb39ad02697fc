"""What names an entry: the decoded picture, and the encoder with everything that changes results.

Owns: the fields of each digest and their order (docs/format.md, "The key"). Does not own: how
fields are framed (``cache.digest``), what an encoder consists of (``cache.encoder_spec``), nor how
pixels are decoded or weights found.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache.digest import Buffer, Digest, EncoderId, EntryKey, Field, FieldHasher, PixelDigest, WeightsDigest
from cache.encoder_spec import COMPUTE_DTYPES, EncoderSpec, Preprocessing

__all__ = [
    "COMPUTE_DTYPES",
    "Buffer",
    "Digest",
    "EncoderId",
    "EncoderSpec",
    "EntryKey",
    "Field",
    "FieldHasher",
    "PixelDigest",
    "Preprocessing",
    "WeightsDigest",
    "entry_key",
    "pixel_digest",
    "weights_digest",
]

_PIXELS = "seeonce 2026-11 pixel digest, format 1"
_WEIGHTS = "seeonce 2026-11 weights digest, format 1"
_ENTRY = "seeonce 2026-11 entry key, format 1"


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
