"""Typed 256-bit BLAKE3 digests, and the hasher that frames fields so that no two lists collide.

Owns: what a digest is, and how a list of fields becomes one. Does not own: which fields name a
picture, an encoder or an entry (``cache.key``).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

DIGEST_BYTES = 32
_MANY_BYTES = 1 << 20
_HEX = frozenset("0123456789abcdef")

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
        if len(text) != 2 * DIGEST_BYTES or not _HEX.issuperset(text):
            raise ValueError(f"expected 64 lower-case hexadecimal digits, got {text[:80]!r}")
        return cls(bytes.fromhex(text))

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
