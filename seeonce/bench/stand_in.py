"""Pass one before an encoder that takes 100 ms a frame and no processor, as a fast GPU does.

What is measured so is all but the encoder: whether decoding, preparing and writing keep up with it on the
cores that are here, and what they cost.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from cache.base.home import Home
from cache.entry import STORED_DTYPES, Features, num_merged_tokens
from cache.key import EncoderSpec
from checkpoint import backend
from precompute.patches import Patches
from seeonce.bench.passes import encode
from seeonce.bench.report import Row, Table
from sources.recording import FrameChoice
from sources.recordings import open_recording

FRAME_S = 0.1
_EVERY_S = 2.0
_PICTURES_A_SECOND = 30
_HEADER = ("source", "frames", "seconds", "of the encoder alone", "CPU ms a frame", "time")


class StandIn:
    """A ``VisionEncoder`` that computes nothing: one picture after the other, ``FRAME_S`` each."""

    def __init__(self, spec: EncoderSpec, frame_s: float = FRAME_S) -> None:
        """Give features of the shape and dtype of ``spec``."""
        self.spec, self.provenance = spec, backend.provenance()
        self._device, self._frame_s = ThreadPoolExecutor(1), frame_s

    def start(self, patches: Patches) -> Callable[[], Features]:
        """Begin, and return what waits for the features."""
        return partial(self._features, self._device.submit(time.sleep, self._frame_s), patches)

    def _features(self, computed: Any, patches: Patches) -> Features:
        computed.result()
        merge = self.spec.preprocessing.merge_size
        num_tokens = num_merged_tokens(patches.grid_thw, merge)
        shape = (self.spec.num_layers, num_tokens, self.spec.out_hidden_size)
        array = np.full(shape, int(patches.pixels[0, 0, 0]), STORED_DTYPES[self.spec.compute_dtype])
        return Features(array, self.spec.compute_dtype, patches.grid_thw, merge)


def measure(spec: EncoderSpec, screens: Path, scratch: Path) -> Table:
    """Encode pictures as PNG, as JPEG and as a video, with entries as large as those of the 4B checkpoint."""
    large = replace(
        spec, out_hidden_size=2560, deepstack_visual_indexes=(5, 11, 17), compute_dtype="bfloat16",
        preprocessing=replace(spec.preprocessing, patch_size=16, merge_size=2, max_pixels=16_777_216),
    )  # fmt: skip
    paths = sorted(screens.glob("*.png"))
    sources = {
        "PNG": screens,
        "JPEG": as_jpeg(paths, scratch / "jpeg"),
        "H.264, a frame every 2 s": as_video(paths, scratch / "screens.mp4"),
    }
    rows = tuple(_row(name, path, large, scratch / "stand-in-home") for name, path in sources.items())
    with Image.open(paths[0]) as picture:
        size = "{}x{}".format(*picture.size)
    title = f"Pass one before an encoder that takes {FRAME_S * 1e3:.0f} ms a frame elsewhere: {size}"
    return Table("pass_one_stand_in", title, _HEADER, rows)


def _row(name: str, path: Path, spec: EncoderSpec, home: Path) -> Row:
    recording = open_recording(str(path), FrameChoice(every_s=_EVERY_S))
    cpu_s, started = time.process_time(), time.perf_counter()
    result = encode(recording, spec, Home(home), lambda: cast("Any", StandIn(spec)))
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    recording.close()
    shutil.rmtree(home)
    num = result.progress.num_new
    return name, num, took_s, num * FRAME_S / took_s, cpu_s / num * 1e3, str(result.seconds)


def as_jpeg(paths: list[Path], folder: Path) -> Path:
    """Save pictures as JPEG."""
    folder.mkdir()
    for path in paths:
        with Image.open(path) as picture:
            picture.convert("RGB").save(folder / f"{path.stem}.jpg", quality=90)
    return folder


def as_video(paths: list[Path], file: Path) -> Path:
    """Show each picture for two seconds in an H.264 video, with a pointer that moves."""
    import av

    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=_PICTURES_A_SECOND, options={"preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        with Image.open(paths[0]) as picture:
            stream.width, stream.height = picture.size
        for number, path in enumerate(paths):
            with Image.open(path) as picture:
                still = np.asarray(picture.convert("RGB"))
            for shown in range(num_shown := round(_EVERY_S * _PICTURES_A_SECOND)):
                moved = still.copy()
                moved[5 * shown : 5 * shown + 16, 8 * shown : 8 * shown + 10] ^= 255
                frame = av.VideoFrame.from_ndarray(moved, "rgb24")
                frame.pts, frame.time_base = number * num_shown + shown, Fraction(1, _PICTURES_A_SECOND)
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file
