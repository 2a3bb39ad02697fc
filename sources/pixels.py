"""Image files as the model's live path sees them: the one way from a file to RGB pixels."""

import re
import threading
import warnings
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.base.text import printable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000  # an 8K screen has 33 million, three 6K screens side by side 61 million
MAX_ASPECT_RATIO = 200  # the Qwen processors refuse more
MIN_SIDE_PIXELS = 2

# By content, not by suffix. Pillow's other readers are left out: one of them runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP")
_PILLOW_MODULES = re.compile(r"PIL\.")
_filter_lock = threading.Lock()


def read_image(path: Path) -> "Image.Image":
    """Read an image file: EXIF transposed, then RGB; alpha dropped, colour profiles ignored.

    Of an animation the first picture. Any number of threads may call this at once.

    Source: `load_image` in mlx_vlm/utils.py, which the live path calls.

    Raises:
        InputError: Missing, unreadable, no PNG, JPEG or WebP file, damaged, or of a size that
            no screen has.
    """
    _require_file(path)
    _hush_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=_FORMATS) as image:
            check_size(image.width, image.height, printable(path))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (InputError, MemoryError):
        raise
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except Image.DecompressionBombError as error:
        raise _too_large(printable(path), "more than twice Pillow's limit of pixels") from error
    except UnidentifiedImageError as error:
        raise _not_an_image(path) from error
    except Exception as error:  # Pillow lets almost any exception out of a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{printable(path)}: damaged image ({printable(reason)}); save it again or remove it"
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
        raise _unreadable(path, error) from error
    if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise InputError(f"{printable(path)}: not a file; name a PNG, JPEG or WebP image")
    if status.st_size == 0:
        raise InputError(f"{printable(path)}: empty file (0 bytes); save it again or remove it")


def _hush_pillow() -> None:
    """Keep Pillow's remarks about odd files from the terminal.

    `warnings.catch_warnings` is not safe in threads, so a filter for Pillow's modules stays.
    It is looked for each time because others (pytest) put the filters back.
    """
    ours = ("ignore", None, Warning, _PILLOW_MODULES, 0)
    with _filter_lock:
        if ours not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PILLOW_MODULES.pattern)


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"{printable(path)}: cannot be read ({reason}); check the file and its permissions")


def _not_an_image(path: Path) -> InputError:
    return InputError(f"{printable(path)}: neither PNG, JPEG nor WebP inside; convert it or remove it")


def _too_large(name: str, found: str) -> InputError:
    return InputError(
        f"{name}: {found} pixels, far too large to be a screen (limit {MAX_PIXELS:,} pixels); "
        "scale it down or remove it"
    )
