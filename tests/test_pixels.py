"""Image files as pixels: the same as mlx-vlm's live path gives, and what is refused."""

import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from cache.base.errors import InputError
from sources.pixels import MAX_PIXELS, check_size, pixels_array, read_image

Maker = Callable[[Path], Path]


def _noise(mode: str, size: tuple[int, int] = (37, 23)) -> Image.Image:
    bands = Image.frombytes("RGBA", size, np.random.default_rng(7).bytes(size[0] * size[1] * 4))
    return bands.convert(mode)


def _alpha_png(folder: Path) -> Path:
    _noise("RGBA").save(folder / "alpha.png")
    return folder / "alpha.png"


def _palette_png(folder: Path) -> Path:
    image = _noise("RGB").quantize(16)
    image.save(folder / "palette.png", transparency=bytes(range(0, 256, 16)))
    return folder / "palette.png"


def _palette_key_png(folder: Path) -> Path:
    _noise("RGB").quantize(16).save(folder / "key.png", transparency=3)
    return folder / "key.png"


def _deep_rgb_png(folder: Path) -> Path:
    rows = b"".join(b"\0" + np.random.default_rng(y).bytes(5 * 6) for y in range(4))
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    _write_png(folder / "deep_rgb.png", header, zlib.compress(rows))
    return folder / "deep_rgb.png"


def _grey_jpeg(folder: Path) -> Path:
    _noise("L").save(folder / "grey.jpg")
    return folder / "grey.jpg"


def _cmyk_jpeg(folder: Path) -> Path:
    _noise("CMYK").save(folder / "cmyk.jpg")
    return folder / "cmyk.jpg"


def _turned_jpeg(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    _noise("RGB").save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


def _bilevel_png(folder: Path) -> Path:
    _noise("1").save(folder / "bilevel.png")
    return folder / "bilevel.png"


def _animated_webp(folder: Path) -> Path:
    frames = [_noise("RGBA"), Image.new("RGBA", (37, 23), "red")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    return folder / "moving.webp"


def _broken_exif_jpeg(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x010E] = "a description long enough to be stored elsewhere"
    _noise("RGB").save(folder / "exif.jpg", exif=exif.tobytes()[:-40])
    return folder / "exif.jpg"


def _mislabelled_webp(folder: Path) -> Path:
    _noise("RGB").save(folder / "really_webp.png", "WEBP", lossless=True)
    return folder / "really_webp.png"


def _write_png(path: Path, header: bytes, data: bytes) -> None:
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    framed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + framed)


MAKERS = [
    _alpha_png,
    _palette_png,
    _palette_key_png,
    _deep_rgb_png,
    _grey_jpeg,
    _cmyk_jpeg,
    _turned_jpeg,
    _bilevel_png,
    _animated_webp,
    _broken_exif_jpeg,
    _mislabelled_webp,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.strip("_"))
def test_odd_images_give_the_pixels_that_mlx_vlm_sees(make: Maker, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlx_vlm.utils import load_image

        path = make(tmp_path)
        live = np.asarray(load_image(str(path)))
    ours = pixels_array(read_image(path))
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, live)


def test_pictures_are_rgb_upright_and_shaped_height_first(tmp_path: Path) -> None:
    image = read_image(_turned_jpeg(tmp_path))
    assert image.mode == "RGB"
    assert pixels_array(image).shape == (37, 23, 3)


def test_pillows_remarks_reach_nobody(tmp_path: Path) -> None:
    paths = [make(tmp_path) for make in (_palette_png, _broken_exif_jpeg)]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for path in paths:
            read_image(path)
    assert heard == []


def test_an_8k_screen_passes_and_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    check_size(7680, 4320, "8k.png")
    check_size(5120, 1440, "ultrawide.png")
    bomb = tmp_path / "bomb.png"
    _write_png(bomb, struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"")
    with pytest.raises(InputError, match="far too large to be a screen"):
        read_image(bomb)


def test_a_picture_between_pillows_limit_and_ours_is_not_warned_about(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    header_only = tmp_path / "large.png"
    _write_png(header_only, struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"")
    with pytest.raises(InputError, match="damaged"):  # got past the size, found no pixels
        read_image(header_only)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((201, 1), "too small"),
        ((1, 1), "too small"),
        ((804, 4), "absurdly shaped"),
        ((3, 900), "absurdly shaped"),
    ],
)
def test_shapes_that_no_screen_has_are_refused(size: tuple[int, int], said: str, tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "odd.png")
    with pytest.raises(InputError, match=said):
        read_image(tmp_path / "odd.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_truncated_image_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"half.{suffix}"
    _noise("RGB", (200, 100)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"half\.{suffix}: damaged image"):
        read_image(path)


def test_what_is_no_image_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image\n")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, said in [
        ("text", "no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF inside"),
        ("script", "no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF inside"),
        ("empty", "empty file"),
        ("folder", "not a file"),
        ("gone", "no such file"),
    ]:
        with pytest.raises(InputError, match=said):
            read_image(tmp_path / f"{name}.png")


def test_pipes_and_loops_of_links_are_refused_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(InputError, match="not a file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "loop.png")


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _alpha_png(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # root, as in CI, may read anything
    with pytest.raises(InputError, match=r"Permission denied.*permissions"):
        read_image(path)


def test_errors_are_one_line_even_for_a_name_with_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.png"
    path.write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()


def test_many_threads_read_the_same_pixels_and_change_no_flag(tmp_path: Path) -> None:
    paths = [make(tmp_path) for make in MAKERS] * 8
    flags = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    alone = [pixels_array(read_image(path)) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: pixels_array(read_image(path)), paths))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert flags == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_pixels_of_another_mode_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="RGBA"):
        pixels_array(Image.new("RGBA", (4, 4)))
