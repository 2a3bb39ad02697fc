"""Damaged image files: each is refused by name, whatever a decoder raises, and nothing is printed."""

import io
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.base.errors import InputError
from sources import pixels
from sources.pixels import read_header, read_image
from sources.recordings import open_recording

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def _files(format_: str) -> list[bytes]:
    """Write a picture in a format in the ways that its decoder has."""
    noise = np.random.default_rng(3).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    ways: list[tuple[Image.Image, dict[str, object]]] = [(picture, {}), (picture.convert("L"), {})]
    if format_ == "TIFF":
        ways += [
            (picture, {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ]
        ways += [(picture.convert("CMYK"), {}), (picture.convert("LAB"), {})]
    if format_ in ("PNG", "GIF", "WEBP", "AVIF"):
        ways += [(picture, {"save_all": True, "append_images": [picture.rotate(180)]})]
    files = []
    for image, options in ways:
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        files.append(buffer.getvalue())
    return files


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change, cut, double or fill with noise some of a file, more often near its start."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = int(len(changed) * rng.random() ** rng.choice((1, 3)))
        way = rng.randrange(5)
        if way == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            changed[place : place + 4] = struct.pack(
                rng.choice(("<I", ">I")), rng.choice((0, 1, 2**31, 2**32 - 1))
            )
        elif way == 2:
            del changed[place : place + rng.randrange(1, 40)]
        elif way == 3:
            changed[place:place] = changed[place : place + rng.randrange(1, 40)]
        else:
            changed[place : place + 8] = rng.randbytes(8)
        if not changed:
            return b"x"
    return bytes(changed)


def _try(format_: str, seed: int, num_files: int, folder: Path) -> int:
    """Read damaged files; return how many were refused. Anything but ``InputError`` is a failure."""
    rng = random.Random(f"{format_} {seed}")
    files, path, refused = _files(format_), folder / "damaged.png", 0
    for _ in range(num_files):
        path.write_bytes(damaged(rng.choice(files), rng))
        for read in (read_header, read_image):
            try:
                read(path)
            except InputError as error:
                assert "damaged.png" in str(error)  # noqa: PT017
                refused += 1
    return refused


@pytest.mark.parametrize("format_", FORMATS)
def test_damage_is_refused_by_name_and_nothing_is_printed(
    format_: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _try(format_, 1, 150, tmp_path) > 10
    assert capfd.readouterr() == ("", "")


@pytest.mark.campaign
@pytest.mark.parametrize("format_", FORMATS)
def test_much_damage_is_refused_by_name(
    format_: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2, 12):
        _try(format_, seed, 500, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), NotImplementedError(), MemoryError(), SystemError("y"), KeyError(3)]
)
def test_whatever_a_decoder_raises_names_the_frame(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise error

    frame = open_recording(str(tmp_path)).frames()[0]
    monkeypatch.setattr(pixels, "read_image", fail)
    with pytest.raises(InputError, match=r"a\.png: cannot be decoded"):
        frame.read()
    monkeypatch.undo()
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError, match=r"a\.png: damaged image"):
        frame.read()


def test_a_heic_picture_is_refused_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(InputError, match=r"a\.png: a HEIC picture.*sips -s format png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"II*\0\xff\xff\xff\x7f", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]
)
def test_a_damaged_picture_is_not_called_another_kind_of_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content + bytes(20))
    with pytest.raises(InputError, match=r"a\.png: damaged image"):
        read_image(tmp_path / "a.png")


def test_what_pillow_logs_of_a_tiff_is_not_printed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    samples = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, a short
    assert samples in content
    (tmp_path / "a.tif").write_bytes(content.replace(samples + b"\3\0", samples + b"\3\x80"))
    code = (
        "import sys; from pathlib import Path; from sources.pixels import read_image; "
        "from cache.base.errors import InputError\n"
        "try: read_image(Path(sys.argv[1]))\nexcept InputError as error: print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    assert "a.tif: damaged image (a TIFF that does not open)" in ended.stdout
