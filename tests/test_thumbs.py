"""Thumbnails: small, private, written by pass one when it decodes anyway, and never in its way."""

import io
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from screens import folder_of, noise
from store_samples import new_store, pixels

from cache import pixel_index
from cache.base.home import Home
from cache.base.listener import Listener
from cache.store import Durability
from cache.thumbnails import MAX_BYTES, Thumbnails, shrink
from precompute.options import EncodeOptions
from precompute.pass_one import encode
from precompute.pipeline import EncodeResult
from sources import pixels as decoding

Encode = Callable[..., EncodeResult]


class Lines(Listener):
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def thumbnails(tmp_path: Path) -> Thumbnails:
    return Thumbnails(new_store(tmp_path).home)


@pytest.fixture
def encoding(plain: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Encode:
    """Return a function that encodes a folder of three pictures into this test's home."""
    monkeypatch.setattr(pixel_index, "RACY_NS", 0)
    images = folder_of(tmp_path / "images")
    new_store(tmp_path)

    def run(*, thumbnails: bool = True, lines: Lines | None = None) -> EncodeResult:
        options = EncodeOptions(str(images), str(plain), durability=Durability.none, thumbnails=thumbnails)
        return encode(Home(home), options, lines or Lines())

    return run


def _there(home: Path) -> set[str]:
    return {path.name for path in (home / "store" / "thumbs").iterdir()}


@pytest.mark.parametrize(
    ("size", "small"), [((1920, 1080), (480, 270)), ((40, 30), (40, 30)), ((90, 960), (45, 480))]
)
def test_a_thumbnail_is_a_small_picture_of_the_same_shape(
    size: tuple[int, int], small: tuple[int, int], thumbnails: Thumbnails
) -> None:
    assert thumbnails.write(pixels(1), Image.new("RGB", size, "teal"))
    with Image.open(io.BytesIO(thumbnails.read(pixels(1)) or b"")) as image:
        assert (image.format, image.size) == ("WEBP", small)
        colour = image.convert("RGB").resize((1, 1)).tobytes()
    assert all(abs(found - wanted) < 8 for found, wanted in zip(colour, (0, 128, 128), strict=True))


def test_even_noise_becomes_small(thumbnails: Thumbnails) -> None:
    assert len(shrink(noise(0, 1920, 1080))) <= MAX_BYTES


def test_a_thumbnail_is_readable_by_its_owner_alone(thumbnails: Thumbnails, tmp_path: Path) -> None:
    thumbnails.write(pixels(1), noise(1))
    (file,) = (tmp_path / "home" / "store" / "thumbs").iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == (pixels(1).hex, 0o600)


def test_a_thumbnail_that_was_removed_is_gone(thumbnails: Thumbnails) -> None:
    thumbnails.write(pixels(1), noise(1))
    assert list(thumbnails.digests()) == [pixels(1)]
    assert (thumbnails.remove(pixels(1)), thumbnails.remove(pixels(1))) == (True, False)
    assert (thumbnails.has(pixels(1)), thumbnails.read(pixels(1))) == (False, None)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"<svg onload=alert(1)>"])
def test_a_file_that_is_no_thumbnail_is_not_given_out(
    content: bytes, thumbnails: Thumbnails, tmp_path: Path
) -> None:
    (tmp_path / "home" / "store" / "thumbs" / pixels(1).hex).write_bytes(content)
    assert thumbnails.read(pixels(1)) is None


def test_a_torn_thumbnail_is_not_given_out(thumbnails: Thumbnails, tmp_path: Path) -> None:
    file = tmp_path / "home" / "store" / "thumbs" / pixels(1).hex
    file.write_bytes(shrink(noise(1))[:-7])
    assert thumbnails.read(pixels(1)) is None


def test_pass_one_leaves_a_thumbnail_of_every_picture(encoding: Encode, home: Path) -> None:
    manifest = encoding().manifest
    assert _there(home) == {frame.pixels.hex for frame in manifest.frames}


def test_pass_one_leaves_none_when_they_are_turned_off(encoding: Encode, home: Path) -> None:
    encoding(thumbnails=False)
    assert not _there(home)


def test_a_second_encode_decodes_nothing_for_a_thumbnail(
    encoding: Encode, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding(thumbnails=False)
    monkeypatch.setattr(decoding, "read_image", lambda path: pytest.fail(f"decoded {path}"))
    assert encoding().progress.num_hits == 3
    assert not _there(home)


def test_a_picture_that_is_decoded_for_an_entry_that_is_there_gets_its_thumbnail(
    encoding: Encode, home: Path
) -> None:
    encoding(thumbnails=False)
    for file in (home / "store" / "index").iterdir():
        file.unlink()
    assert encoding().progress.num_new == 0
    assert len(_there(home)) == 3


def test_thumbnails_that_cannot_be_written_are_told_once_and_stop_nothing(
    encoding: Encode, home: Path
) -> None:
    folder = home / "store" / "thumbs"
    folder.rmdir()
    folder.write_text("no folder")
    result = encoding(lines=(lines := Lines()))
    assert result.progress.num_new == 3
    assert sum("reports lack pictures" in line for line in lines.lines) == 1
