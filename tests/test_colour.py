"""Colours: what mlx-vlm would clip or take for sRGB is shown as a viewer shows it, or refused by name."""

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from cache.base.errors import InputError
from sources import colour
from sources.pixels import is_read_plainly, read_header, read_image
from sources.recording import FrameChoice
from sources.video import open_video

Floats = NDArray[np.float64]
WHITE_CD = 203  # ITU-R BT.2408
SRGB_TO_P3 = np.array([[0.8225, 0.1774, 0], [0.0332, 0.9669, 0], [0.0171, 0.0724, 0.9108]])
SRGB_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def _screen() -> Image.Image:
    """Draw areas of many colours, so large that no codec blurs them all."""
    blocks = np.random.default_rng(5).integers(64, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))


def _linear(image: Image.Image) -> Floats:
    signal = np.asarray(image) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _in_p3(image: Image.Image) -> Image.Image:
    light = np.clip(_linear(image) @ SRGB_TO_P3.T, 0, 1)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((signal * 255).round().astype(np.uint8))


def _pq(image: Image.Image) -> Floats:
    light = np.clip(_linear(image) @ SRGB_TO_2020.T * WHITE_CD / 10_000, 0, 1) ** 0.1593017578125
    signal = ((0.8359375 + 18.8515625 * light) / (1 + 18.6875 * light)) ** 78.84375
    return np.asarray(signal, dtype=np.float64)


def _hlg(image: Image.Image) -> Floats:
    shown = np.clip(_linear(image) @ SRGB_TO_2020.T * WHITE_CD / 1000, 0, 1)
    luminance = np.maximum(shown @ np.array([0.2627, 0.678, 0.0593]), 1e-9)[..., None]
    light = shown * luminance ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.asarray(np.where(light <= 1 / 12, np.sqrt(3 * light), upper), dtype=np.float64)


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _xyz(*numbers: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*numbers)


def display_p3() -> bytes:
    """Make the ICC profile that screenshots of a Mac carry: P3's primaries, sRGB's curve."""
    text = "Display P3".encode("utf-16-be")
    name = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"desc": name, b"cprt": name, b"wtpt": _xyz(0.9642, 1, 0.8249)}
    tags |= {b"rXYZ": _xyz(0.51512, 0.2412, -0.00105), b"gXYZ": _xyz(0.29198, 0.69225, 0.04189)}
    tags |= {b"bXYZ": _xyz(0.1571, 0.06657, 0.78407)} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"lcms", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header = (header + bytes(12) + b"acsp" + bytes(28)).ljust(68, b"\0") + _fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _error(shown: Image.Image, meant: Image.Image) -> int:
    """Give the largest difference, 0 to 255."""
    return int(np.abs(np.asarray(shown).astype(int) - np.asarray(meant)).max())


def _with_cicp(image: Image.Image, path: Path, primaries: int, transfer: int) -> Path:
    """Write a PNG file whose cICP chunk names its colours."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    body = b"cICP" + bytes((primaries, transfer, 0, 1))
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(buffer.getvalue()[:33] + chunk + buffer.getvalue()[33:])
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_greys_keep_their_shades(suffix: str, tmp_path: Path) -> None:
    shades = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(shades).save(tmp_path / f"deep.{suffix}")
    shown = np.asarray(read_image(tmp_path / f"deep.{suffix}"))
    assert np.array_equal(shown[..., 0], np.round(shades / 257))
    assert not is_read_plainly(tmp_path / f"deep.{suffix}")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_white_are_refused_by_name(mode: str, tmp_path: Path) -> None:
    _screen().convert("L").convert(mode).save(tmp_path / "odd.tif")
    with pytest.raises(InputError, match=r"odd\.tif: .*nobody knows what is white"):
        read_image(tmp_path / "odd.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_without_a_profile_are_read_plainly(mode: str, tmp_path: Path) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    _screen().convert(mode).save(tmp_path / f"plain.{suffix}")
    assert is_read_plainly(tmp_path / f"plain.{suffix}")


@pytest.mark.parametrize("profile", [_srgb(), b"no profile at all" * 20], ids=["sRGB", "damaged"])
def test_a_profile_that_says_srgb_or_nonsense_changes_no_pixel(profile: bytes, tmp_path: Path) -> None:
    _screen().save(tmp_path / "a.png", icc_profile=profile)
    assert is_read_plainly(tmp_path / "a.png")
    assert _error(read_image(tmp_path / "a.png"), _screen()) == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg", "avif"])
def test_display_p3_is_shown_in_srgb(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mac.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": "4:4:4"}
    _in_p3(_screen()).save(path, icc_profile=display_p3(), **({} if suffix in ("png", "tif") else options))
    lossy = 0 if suffix in ("png", "tif", "webp") else 9
    assert _error(read_image(path), _screen()) <= 3 + lossy
    assert _error(read_image(path), Image.open(path).convert("RGB")) > 20


def test_transparent_palette_and_grey_pictures_follow_their_profile(tmp_path: Path) -> None:
    for mode in ("RGBA", "P"):
        _in_p3(_screen()).convert(mode).save(tmp_path / "a.png", icc_profile=display_p3())
        plain = Image.open(tmp_path / "a.png").convert("RGB")
        assert _error(read_image(tmp_path / "a.png"), plain) > 20
    _screen().convert("L").save(tmp_path / "grey.png", icc_profile=display_p3())
    assert is_read_plainly(tmp_path / "grey.png")  # P3's greys are those of sRGB


def test_lab_is_shown_by_its_meaning(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(_screen(), to_lab)
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert _error(read_image(tmp_path / "lab.tif"), _screen()) <= 8  # 8 bits of Lab are coarse


def test_a_png_file_whose_chunk_names_its_colours_is_shown_in_srgb(tmp_path: Path) -> None:
    path = _with_cicp(_in_p3(_screen()), tmp_path / "a.png", 12, 13)
    assert not is_read_plainly(path)
    assert _error(read_image(path), _screen()) <= 3


def _write_video(path: Path, signal: Floats, transfer: int, primaries: int = 9) -> Path:
    """Write a video of 10 bits, without loss, whose three pictures show one signal."""
    deep = np.round(np.clip(signal, 0, 1) * 1023).astype(np.uint16)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = deep.shape[:2]
        stream.pix_fmt = "gbrp10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, primaries
        for number in range(3):
            frame = av.VideoFrame(stream.width, stream.height, "gbrp10le")
            for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
                rows = np.zeros((stream.height, plane.line_size // 2), np.uint16)
                rows[:, : stream.width] = deep[..., channel]
                plane.update(rows.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 1)
            frame.color_trc, frame.color_primaries = transfer, primaries
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("curve", "transfer"), [(_pq, 16), pytest.param(_hlg, 18, marks=pytest.mark.campaign)], ids=["PQ", "HLG"]
)
def test_hdr_videos_are_shown_with_white_as_white(
    curve: Callable[[Image.Image], Floats], transfer: int, tmp_path: Path
) -> None:
    video = _write_video(tmp_path / "hdr.mkv", curve(_screen()), transfer)
    recording = open_video(video, FrameChoice(1))
    for frame in recording.frames():
        errors = np.abs(np.asarray(frame.read()).astype(int) - np.asarray(_screen()))
        assert (errors.mean() <= 1, errors.max() <= 12) == (True, True)  # most at the edge of the gamut
    recording.close()


def test_videos_of_p3_are_shown_in_srgb(tmp_path: Path) -> None:
    """In the format of the PNG file above: FFmpeg computes tables of four seconds for each format."""
    frame = av.VideoFrame.from_image(_in_p3(_screen()))  # type: ignore[no-untyped-call]
    frame.color_trc, frame.color_primaries = 13, 12
    with av.open(str(tmp_path / "p3.mov"), "w") as output:
        stream = output.add_stream("png", rate=1, width=frame.width, height=frame.height, pix_fmt="rgb24")
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 13, 12
        output.mux([*stream.encode(frame), *stream.encode(None)])
    (shown,) = open_video(tmp_path / "p3.mov", FrameChoice(1)).frames()
    assert _error(shown.read(), _screen()) <= 3
    assert _error(shown.read(), _in_p3(_screen())) > 20


def test_ordinary_videos_are_left_as_they_are(tmp_path: Path) -> None:
    for transfer, primaries in ((1, 1), (2, 2), (6, 6), (13, 1)):
        video = _write_video(tmp_path / "sdr.mkv", np.asarray(_screen()) / 255, transfer, primaries)
        shown = open_video(video, FrameChoice(1)).frames()[0].read()
        with av.open(str(video)) as container:
            plain = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
        assert _error(shown, plain) == 0


def test_an_ffmpeg_that_cannot_show_hdr_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise av.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr(colour, "_graph", refuse)
    video = _write_video(tmp_path / "hdr.mkv", _pq(_screen()), 16)
    with pytest.raises(InputError, match=r"HDR \(PQ or HLG\).*pip install -U av"):
        open_video(video, FrameChoice(1)).frames()[0].read()


def test_a_header_tells_an_animation_from_a_picture(tmp_path: Path) -> None:
    one, other = _screen(), Image.new("RGB", _screen().size)
    for name in ("a.gif", "a.webp", "a.png", "a.tif", "a.avif"):
        one.save(tmp_path / name, save_all=True, append_images=[other])
        assert read_header(tmp_path / name) == (128, 96, True)
        assert np.asarray(read_image(tmp_path / name)).mean() > 100  # the other one is black
        one.save(tmp_path / name)
        assert not read_header(tmp_path / name).has_more
