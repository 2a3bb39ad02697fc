"""Pictures whose colours are not sRGB, or not of 8 bits, as a viewer shows them."""

import struct
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cache.base.errors import InputError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.filter import Graph
    from PIL import Image
    from PIL.ImageCms import ImageCmsTransform

Conversion = Callable[["Image.Image"], "Image.Image"]

_UNSEEN = 2  # of 255: a profile that changes no colour by more is sRGB by another name
_STEPS = 17  # of each channel, where a profile is tried
_HEAD_BYTES = 1 << 16  # an ICC profile may stand before the tags
_GREYS = ("1", "L", "LA", "La")
_lock = threading.Lock()


class Tags(NamedTuple):
    """Colour primaries and transfer characteristics, in the numbers of ITU-T H.273."""

    primaries: int
    transfer: int

    @property
    def are_wide(self) -> bool:
        """Whether they are those of BT.2020 or P3, or of HDR (PQ or HLG)."""
        return self.primaries in (9, 11, 12) or self.is_hdr

    @property
    def is_hdr(self) -> bool:
        """Whether they are those of PQ or HLG."""
        return self.transfer in (16, 18)


def conversion(image: "Image.Image", source: Path | bytes, name: str) -> Conversion | None:
    """Give what makes an opened picture RGB as a viewer shows it; None where ``convert("RGB")`` does.

    ``source`` is the file, or its bytes; ``name`` is for messages.

    Raises:
        InputError: The range of its values is known to nobody.
    """
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floating point numbers"
        raise InputError(
            f"{name}: its pixels are {kind}, of which nobody knows what is white; "
            "save it again with 8 or 16 bits"
        )
    tags = _tags(image, source)
    profile = image.info.get("icc_profile")
    if tags.are_wide and (image.format == "PNG" or not profile):
        return partial(_by_tags, tags=tags)
    if isinstance(profile, bytes) and (transform := _transform(profile, image.mode)) is not None:
        return partial(_by_profile, transform=transform)
    return _eight_bits if image.mode.startswith("I;16") else None


def _eight_bits(image: "Image.Image") -> "Image.Image":
    return _to_l(image).convert("RGB")


def _to_l(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image.convert("L")
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _by_profile(image: "Image.Image", transform: "ImageCmsTransform") -> "Image.Image":
    from PIL import ImageCms

    mode = transform.input_mode
    shown = ImageCms.applyTransform(_to_l(image) if mode == "L" else image.convert(mode), transform)
    assert shown is not None
    return shown


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> "ImageCmsTransform | None":
    """Build what shows colours of a profile in sRGB; None where it changes none, or is no such profile."""
    from PIL import Image, ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        grey, cmyk = mode in _GREYS or mode.startswith("I;16"), mode == "CMYK"
        takes = {"GRAY": "L" if grey else "", "RGB": "" if cmyk or mode == "LAB" else "RGB"}
        takes["CMYK"] = "CMYK" if cmyk else ""
        if not (taken := takes.get(space, "")):
            return None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            taken,
            "RGB",
            ImageCms.Intent(ImageCms.getDefaultIntent(opened)),
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if taken == "CMYK":
            return transform
        channels = np.linspace(0, 255, _STEPS).astype(np.uint8)
        lattice = np.stack(np.meshgrid(*[channels] * 3), axis=-1).reshape(1, -1, 3)
        colours = Image.fromarray(lattice).convert("L" if grey else "RGB").convert(taken)
        shown = ImageCms.applyTransform(colours, transform)
        plain = np.asarray(colours.convert("RGB"), dtype=np.int16)
        return transform if np.abs(np.asarray(shown, dtype=np.int16) - plain).max() > _UNSEEN else None
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile: viewers ignore it, too
        return None


def _tags(image: "Image.Image", source: Path | bytes) -> Tags:
    """Read a PNG file's cICP chunk or an AVIF file's nclx box; what says nothing is sRGB."""
    if image.format not in ("PNG", "AVIF"):
        return Tags(1, 13)
    head = _head(source)
    if image.format == "PNG":
        before, found, after = head.partition(b"IDAT")[0].partition(b"cICP")
        return Tags(*after[:2]) if found and len(after) >= 2 and before else Tags(1, 13)
    place = head.find(b"colrnclx")
    return Tags(*struct.unpack_from(">HH", head, place + 8)) if 0 <= place < len(head) - 12 else Tags(1, 13)


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _by_tags(image: "Image.Image", tags: Tags) -> "Image.Image":
    from av import VideoFrame

    frame = VideoFrame.from_image(image.convert("RGB"))  # type: ignore[no-untyped-call]
    frame.color_primaries, frame.color_trc = tags
    frame.colorspace, frame.color_range = 0, 2  # RGB, full range
    shown: Image.Image = to_srgb(frame).to_image()  # type: ignore[no-untyped-call]
    return shown


def to_srgb(frame: "VideoFrame") -> "VideoFrame":
    """Show a video's picture in sRGB: HDR with white at 203 cd/m², brighter parts cut; others as they are.

    Source: ITU-R BT.2408 for that white; the arithmetic is that of FFmpeg's filter ``scale``.

    Raises:
        InputError: The FFmpeg inside PyAV cannot do that.
    """
    import av

    tags = Tags(int(frame.color_primaries), int(frame.color_trc))
    if not tags.are_wide:
        return frame
    kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
    with _lock:  # a graph holds one picture at a time
        try:
            graph = _graph(*kind, tags)
            graph.push(frame)
            shown = graph.pull()
        except (av.FFmpegError, ValueError) as error:
            name = "HDR (PQ or HLG)" if tags.is_hdr else "wide colours (P3 or BT.2020)"
            raise InputError(
                f"{name}, which this PyAV cannot show in sRGB ({error}); upgrade it: pip install -U av"
            ) from error
    assert isinstance(shown, av.VideoFrame)
    return shown


@lru_cache(maxsize=4)
def _graph(width: int, height: int, pix_fmt: str, colorspace: int, color_range: int, tags: Tags) -> "Graph":
    """Build the filters; the first picture costs seconds, since tables are computed for it."""
    from av.filter import Graph

    transfer = "iec61966-2-1" if tags.is_hdr else "auto"
    graph = Graph()
    filters = [
        graph.add(
            "buffer",
            f"video_size={width}x{height}:pix_fmt={pix_fmt}:time_base=1/1000:"
            f"colorspace={colorspace}:range={color_range}",
        ),
        graph.add("scale", f"out_primaries=bt709:out_transfer={transfer}:intent=relative_colorimetric"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for one, other in pairwise(filters):
        one.link_to(other)
    graph.configure()
    return graph
