"""Image files as the model's live path sees them: the one way from a file to RGB pixels."""

import ctypes
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.base.text import printable
from sources.colour import conversion

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # an 8K screen has 33 million, three 6K screens side by side 61 million
MAX_ASPECT_RATIO = 200  # the Qwen processors refuse more
MIN_SIDE_PIXELS = 2

SCREEN_PIXELS = 89_478_485  # above it Pillow would warn of a bomb

# By content, not by suffix. Pillow's other readers are left out: one of them runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FORMAT_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_SIGNATURES = (
    (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)  # fmt: skip
_SIGNATURE_BYTES = 12
_silence = logging.NullHandler()  # what Pillow logs would go to stderr where nobody has set up logging
_PILLOW_MODULES = re.compile(r"PIL\.")
_filter_lock = threading.Lock()


class ImageHeader(NamedTuple):
    """What an image file says of itself before a pixel is decoded."""

    width: int
    height: int
    has_more: bool
    """Whether it is an animation or has several pages, of which the first is taken."""


def read_image(source: Path | bytes, name: str = "") -> "Image.Image":
    """Read an image file, or its bytes, as viewers show it: EXIF transposed, 8 bits, sRGB; alpha dropped.

    Of an animation the first picture. Any number of threads may call this at once. Errors call it by its
    path, or ``name``.

    Source: `load_image` in mlx_vlm/utils.py, which the live path calls, but for `is_read_plainly`.

    Raises:
        InputError: Missing, unreadable, of another format, damaged, or of a size that no screen has.
    """
    name = name or _name(source)
    with _opened(source, name) as image:
        from PIL import ImageOps

        to_rgb = conversion(image, source, name)
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB") if to_rgb is None else to_rgb(upright)


def read_header(path: Path) -> ImageHeader:
    """Read an image file's header. Raises `InputError` as `read_image` does."""
    with _opened(path, _name(path)) as image:
        has_more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return ImageHeader(image.width, image.height, has_more)


def is_read_plainly(path: Path) -> bool:
    """Tell whether a picture is read by ``convert("RGB")`` alone, as mlx-vlm does.

    It is not where that would clip values of 16 bits or take another colour space for sRGB.

    Raises:
        InputError: As `read_image`.
    """
    with _opened(path, _name(path)) as image:
        return conversion(image, path, _name(path)) is None


@contextmanager
def _opened(source: Path | bytes, name: str) -> "Iterator[Image.Image]":
    """Open an image file; whatever Pillow raises inside is an `InputError` that names it."""
    if isinstance(source, Path):
        _require_file(source)
    _hush_pillow()
    from PIL import Image, UnidentifiedImageError

    try:
        file = source if isinstance(source, Path) else BytesIO(source)
        with Image.open(file, formats=_FORMATS) as image:
            check_size(image.width, image.height, name)
            yield image
    except InputError:
        raise
    except PermissionError as error:
        raise _unreadable(name, error) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more than twice Pillow's limit of pixels") from error
    except UnidentifiedImageError as error:
        raise _not_an_image(source) from error
    except Exception as error:  # Pillow lets almost any exception out of a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name}: damaged image ({printable(reason)}); save it again or remove it"
        ) from error


def pixels_array(image: "Image.Image") -> NDArray[np.uint8]:
    """Give the picture's pixels as `(height, width, 3)` uint8, as `read_image` returns it.

    Raises:
        ValueError: The picture is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB picture, got mode {image.mode}")
    return np.asarray(image, dtype=np.uint8)


def check_size(width: int, height: int, name: str) -> None:
    """Refuse a picture that no screen shows, judged by its size in pixels alone.

    Raises:
        InputError: Too many pixels (a decompression bomb), too narrow, or next to nothing.
    """
    if width < MIN_SIDE_PIXELS or height < MIN_SIDE_PIXELS:
        raise InputError(
            f"{name}: {width}x{height} pixels, too small to show anything; remove it or save it again"
        )
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InputError(
            f"{name}: {width}x{height} pixels, absurdly shaped: the model takes pictures up to "
            f"{MAX_ASPECT_RATIO} times as long as wide; crop it or remove it"
        )


def _require_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{printable(path)}: no such file (moved or deleted?)") from error
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name too long
        raise _unreadable(printable(path), error) from error
    if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise InputError(f"{printable(path)}: not a file; name an image or a video")
    if status.st_size == 0:
        raise InputError(f"{printable(path)}: empty file (0 bytes); save it again or remove it")


def _hush_pillow() -> None:
    """Keep remarks of Pillow and its libraries about odd files from the terminal.

    `warnings.catch_warnings` is not safe in threads, so a filter for Pillow's modules stays.
    It is looked for each time because others (pytest) put the filters back.
    """
    ours = ("ignore", None, Warning, _PILLOW_MODULES, 0)
    with _filter_lock:
        if ours not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)
            logging.getLogger("PIL").addHandler(_silence)
            _hush_libtiff()


def _hush_libtiff() -> None:
    """Keep libtiff, which writes to the terminal by itself, silent; Pillow raises what it says."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # a Pillow with a libtiff that cannot be reached
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _name(source: Path | bytes) -> str:
    return printable(source) if isinstance(source, Path) else "the picture"


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"{name}: cannot be read ({reason}); check the file and its permissions")


def _not_an_image(source: Path | bytes) -> InputError:
    name = _name(source)
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(_SIGNATURE_BYTES)
    else:
        head = source[:_SIGNATURE_BYTES]
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return InputError(
            f"{name}: a HEIC picture, which is not read; convert it: sips -s format png FILE "
            "--out FILE.png on a Mac, heif-convert FILE FILE.png elsewhere"
        )
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return InputError(
                f"{name}: damaged image (a {kind} that does not open); save it again or remove it"
            )
    return InputError(f"{name}: no {FORMAT_NAMES} inside; convert it or remove it")


def _too_large(name: str, found: str) -> InputError:
    return InputError(
        f"{name}: {found} pixels, far too large to be a screen (limit {MAX_PIXELS:,} pixels); "
        "scale it down or remove it"
    )
