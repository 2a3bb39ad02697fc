"""Reading the metadata of thousands of entries that differ in a few fields only.

Owns: recognising metadata that equals, byte for byte, one that passed every check, but for the fields
below. Does not own: those checks (``cache.entry_json``), nor the seal, which is checked every time.

All entries of one encoder and one size of picture share everything but key, pixels, checksums and time. The
values of these are hexadecimal digits, a number and a time, so no value can change what the rest means.
"""

import re
from dataclasses import dataclass

from cache.entry import EntryInfo
from cache.key import EncoderId, EntryKey, PixelDigest, entry_key

_MAX_KNOWN = 256
# In the order of canonical JSON; quotation marks inside strings are escaped, so these are real fields.
_CHECKSUMS = re.compile(
    rb'"seeonce":\{"blake3":"([0-9a-f]{64})","crc32c":(0|[1-9][0-9]{0,9}),"created_at":"([0-9TZ:-]{20})",'
)
_KEY = re.compile(rb',"key":"([0-9a-f]{64})",')
_PIXELS = re.compile(rb'"metadata_digest":"[0-9a-f]{64}","pixels":"([0-9a-f]{64})",')

_Rest = tuple[bytes, bytes, bytes, bytes]
"""What is left of metadata when the fields above are cut out."""


@dataclass(frozen=True, slots=True)
class _Own:
    """The text of an entry's own fields."""

    blake3: bytes
    crc32c: bytes
    created_at: bytes
    key: bytes
    pixels: bytes


@dataclass(frozen=True, slots=True)
class _Known:
    info: EntryInfo
    encoder_id: EncoderId


_known: dict[_Rest, _Known] = {}


def recall(raw: bytes, key: EntryKey) -> EntryInfo | None:
    """Return what sealed metadata says when all but its own fields is known to be right; else None."""
    split = _split(raw)
    if split is None:
        return None
    own, rest = split
    known = _known.get(rest)
    if known is None or own.key.decode("ascii") != key.hex:
        return None
    pixels = PixelDigest(bytes.fromhex(own.pixels.decode("ascii")))
    if entry_key(pixels, known.encoder_id) != key:
        return None
    info = known.info
    return EntryInfo(
        key=key,
        shape=info.shape,
        dtype=info.dtype,
        grid_thw=info.grid_thw,
        merge_size=info.merge_size,
        pixels=pixels,
        encoder=info.encoder,
        crc32c=int(own.crc32c),
        blake3=bytes.fromhex(own.blake3.decode("ascii")),
        provenance=info.provenance,
        created_at=own.created_at.decode("ascii"),
    )


def remember(raw: bytes, info: EntryInfo) -> None:
    """Take note of metadata that passed every check and was read as ``info``."""
    split = _split(raw)
    read_as = (info.blake3.hex(), str(info.crc32c), info.created_at, info.key.hex, info.pixels.hex)
    if split is None or split[0] != _Own(*(value.encode("ascii", "replace") for value in read_as)):
        return
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[split[1]] = _Known(info, info.encoder_id)


def _split(raw: bytes) -> tuple[_Own, _Rest] | None:
    checksums = _CHECKSUMS.search(raw)
    key = _KEY.search(raw, checksums.end()) if checksums else None
    pixels = _PIXELS.search(raw, key.end()) if key else None
    if checksums is None or key is None or pixels is None:
        return None
    own = _Own(checksums[1], checksums[2], checksums[3], key[1], pixels[1])
    rest = (
        raw[: checksums.start()],
        raw[checksums.end() : key.start()],
        raw[key.end() : pixels.start()],
        raw[pixels.end() :],
    )
    return own, rest
