"""Near-duplicate frames: which of them look like the last one that was kept, by perceptual hash.

Hashes are those of the source (Escribano's recorder) if all frames have one, else ImageHash's of 64 bits,
which are kept by the picture's digest. Hashes of two kinds are never compared.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cache.base.errors import InputError
from cache.key import PixelDigest
from cache.pixel_index import PixelIndex
from sources.recording import Frame

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 64
_NOTE = "perceptual hash, ImageHash phash 8x8, of "


class NearDuplicates:
    """Compares the frames of one recording by hashes of one kind. Threads may share it."""

    def __init__(self, max_distance: int, frames: Sequence[Frame], index: PixelIndex) -> None:
        """Take the source's hashes if all frames have one, else the library's that are remembered.

        Raises:
            InputError: ``max_distance`` is no number of bits.
        """
        require_distance(max_distance)
        self._max_distance, self._index = max_distance, index
        self._recorded = bool(frames) and all(frame.perceptual_hash is not None for frame in frames)
        self._known = {frame.index: frame.perceptual_hash for frame in frames} if self._recorded else {}
        if not self._recorded:
            pixels = index.get_many([frame.stamp for frame in frames])
            for frame in frames:
                known = pixels.get(frame.stamp)
                self._known[frame.index] = None if known is None else self._remembered(known.pixels)
        self.likely = self._likely(frames)

    def near(self, hash_: int, kept: int) -> bool:
        """Tell whether two hashes are so near that their pictures count as one."""
        return (hash_ ^ kept).bit_count() <= self._max_distance

    def known(self, frame: Frame) -> int | None:
        """Return the hash of a frame if no picture need be decoded for it."""
        return self._known[frame.index]

    def of(self, frame: Frame, pixels: PixelDigest, image: "Image.Image") -> int:
        """Return the hash of a frame whose picture is at hand, and remember it."""
        known = self._known[frame.index]
        if known is None:
            known = self._remembered(pixels)
        if known is None:
            known = perceptual_hash(image)
            self._index.put_note(_NOTE + pixels.hex, f"{known:016x}")
        return known

    def _remembered(self, pixels: PixelDigest) -> int | None:
        note = self._index.get_note(_NOTE + pixels.hex)
        return None if note is None else int(note, 16)

    def _likely(self, frames: Sequence[Frame]) -> frozenset[int]:
        """Return the frames that will be near duplicates if all kept ones can be read."""
        found, kept = set(), None
        for frame in frames:
            hash_ = self._known[frame.index]
            if hash_ is not None and kept is not None and self.near(hash_, kept):
                found.add(frame.index)
            else:
                kept = hash_
        return frozenset(found)


def require_distance(max_distance: int) -> None:
    """Refuse what is no distance between two hashes.

    Raises:
        InputError: below 0 or above 64.
    """
    if not 0 <= max_distance <= HASH_BITS:
        raise InputError(
            f"--near-duplicates is {max_distance}; expected a number of bits from 0 to {HASH_BITS}, as in "
            "--near-duplicates 4"
        )


def perceptual_hash(image: "Image.Image") -> int:
    """Return ImageHash's perceptual hash of a picture as 64 bits."""
    import imagehash

    return int(str(imagehash.phash(image)), 16)
