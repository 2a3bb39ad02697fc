"""Small pictures of frames for reports, since the frames themselves may be gone: ``thumbs/<pixel digest>``.

They are a convenience: one that is missing or damaged is no thumbnail, and one that cannot be written is
reported in ``problem``, no error.
"""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from cache.base.files import Durability, Folder
from cache.base.home import Home
from cache.key import PixelDigest
from cache.layout import THUMBS

if TYPE_CHECKING:
    from PIL import Image

MAX_WIDTH, MAX_HEIGHT = 480, 480
MAX_BYTES = 40_000  # 182 of them, in the base64 of a report, stay below 10 MB
_QUALITIES = (75, 50, 25, 5)
_READ_LIMIT_BYTES = 1 << 20


class Thumbnails:
    """The thumbnails of one home. Threads and processes may share it: files are written once, whole."""

    def __init__(self, home: Home) -> None:
        """Nothing is opened; ``problem`` says why a thumbnail could not be written, if one could not."""
        self._path = home.store / THUMBS
        self.problem: str | None = None

    def has(self, pixels: PixelDigest) -> bool:
        """Tell whether there is a thumbnail of this picture; its bytes are not looked at."""
        try:
            with Folder.open(self._path) as folder:
                return bool(folder.file_size(pixels.hex))
        except OSError:
            return False

    def read(self, pixels: PixelDigest) -> bytes | None:
        """Return the WebP file of this picture; ``None`` when there is none that can be one."""
        try:
            with Folder.open(self._path) as folder:
                content = folder.read(pixels.hex, _READ_LIMIT_BYTES)
        except OSError:
            return None
        return content if _is_whole_webp(content) else None

    def write(self, pixels: PixelDigest, image: "Image.Image") -> bool:
        """Keep a small copy of ``image`` and tell whether it is there now; raises nothing for a full disk."""
        try:
            content = shrink(image)
            with Folder.open(self._path) as folder:
                folder.write_once(pixels.hex, content, Durability.none)
        except (OSError, ValueError, MemoryError) as error:
            self.problem = str(getattr(error, "strerror", None) or error) or type(error).__name__
            return False
        return True

    def remove(self, pixels: PixelDigest) -> bool:
        """Delete the thumbnail of this picture; tell whether there was one."""
        try:
            with Folder.open(self._path) as folder:
                os.unlink(pixels.hex, dir_fd=folder.fd)
        except OSError:
            return False
        return True

    def digests(self) -> Iterator[PixelDigest]:
        """Yield which pictures have a thumbnail, in no particular order."""
        with suppress(FileNotFoundError), os.scandir(self._path) as files:
            for file in files:
                with suppress(ValueError):
                    yield PixelDigest.from_hex(file.name)


def shrink(image: "Image.Image") -> bytes:
    """Return a picture as WebP of at most 480 pixels a side, which keeps its shape and no metadata."""
    small = image.convert("RGB")
    small.thumbnail((MAX_WIDTH, MAX_HEIGHT), reducing_gap=1.0)  # by whole numbers first, which is fast
    content = b""
    for quality in _QUALITIES:  # noise compresses badly, and a report must fit into a mail
        target = io.BytesIO()
        small.save(target, "WEBP", quality=quality, method=2, icc_profile=b"", exif=b"")
        content = target.getvalue()
        if len(content) <= MAX_BYTES:
            break
    return content


def _is_whole_webp(content: bytes) -> bool:
    """Tell whether the file is a RIFF container of kind WEBP that is as long as it says."""
    length = int.from_bytes(content[4:8], "little") + 8
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP" and len(content) == length
