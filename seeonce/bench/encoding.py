"""Workload 4: pass one against a bare loop over the vision tower, where its time goes, and doing nothing."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache.base.home import Home
from cache.key import pixel_digest
from cache.store import Store
from cache.thumbnails import Thumbnails
from checkpoint.identity import image_processor
from precompute.encoder import VisionEncoder
from precompute.patches import cut_into_patches
from seeonce.bench import stand_in
from seeonce.bench.baseline import Inputs, as_stored, bare_tower
from seeonce.bench.measure import Clock
from seeonce.bench.passes import Encoded, Model, encode_frames
from seeonce.bench.report import Row, Table
from sources.pixels import pixels_array

_HEADER = ("path", "frames", "seconds", "spread", "frames/s", "of the bare tower", "unlike the tower's")
_STEPS = ("decode", "hashing", "thumbnail", "preprocessing", "encoder", "writing")


def measure(
    model: Model, images: Path, screens: Path, scratch: Path, num_idle: int, clock: Clock
) -> list[Table]:
    """Compare pass one with the tower alone over the same pictures; then run it with nothing to do.

    That second run finds ``num_idle`` unchanged frames. ``screens`` are for the stand-in of a fast encoder.
    """
    paths, encoder, tower = sorted(images.glob("*.png")), model.encoder(), bare_tower(model)
    homes = (Home(scratch / f"pass-one-{number}") for number in count())
    processor = image_processor(model.checkpoint)
    inputs = [processor(images=[_decoded(path)]) for path in paths]

    def bare() -> None:
        for one in inputs:
            tower(one)

    def pass_one() -> Encoded:
        return encode_frames(model, images, next(homes), encoder)

    ways: dict[str, Callable[[], Encoded | None]] = {"bare vision tower": bare, "pass one": pass_one}
    of_tower, ours = clock.alternate(ways)
    num_unlike = None if ours.outcome is None else _num_unlike(ours.outcome, inputs, tower)
    idle_s = _idle_s(model, encoder, _decoded(paths[0]), scratch, num_idle)
    num_frames, bare_s, ours_s = len(paths), of_tower.median_s, ours.median_s
    rows: tuple[Row, ...] = (
        (of_tower.name, num_frames, bare_s, f"{of_tower.spread:.0%}", num_frames / bare_s, 1, None),
        (
            ours.name, num_frames, ours_s, f"{ours.spread:.0%}", num_frames / ours_s, bare_s / ours_s,
            num_unlike,
        ),
        ("pass one, nothing to do", num_idle, idle_s, None, num_idle / idle_s, None, None),
    )  # fmt: skip
    width, height = _decoded(paths[0]).size
    title = f"Pass one: {num_frames} frames of {width}x{height}"
    remarks = () if ours.outcome is None else (f"Pass one's own thread: {ours.outcome.seconds}.",)
    return [
        Table("pass_one", title, _HEADER, rows, remarks),
        _shares(model, encoder, paths, next(homes)),
        stand_in.measure(model.spec, screens, scratch),
    ]


def _num_unlike(encoded: Encoded, inputs: Sequence[Inputs], tower: Callable[[Inputs], Any]) -> int:
    """Count frames whose stored features are not bit for bit the tower's."""
    num_unlike = 0
    for frame, one in zip(encoded.manifest.frames, inputs, strict=True):
        stored = encoded.store.read(frame.key)
        num_unlike += stored is None or not np.array_equal(stored.array, as_stored(tower(one)))
    return num_unlike


def _idle_s(model: Model, encoder: VisionEncoder, picture: Image.Image, scratch: Path, num: int) -> float:
    """Encode many small different pictures, and return the seconds of a second run over them."""
    folder, home = scratch / "idle", Home(scratch / "idle-home")
    folder.mkdir()
    small = picture.resize((64, 64))
    for number in range(num):
        small.putpixel((number % 64, number // 64), (255, 0, 255))
        small.save(folder / f"{number:05d}.png")
    encode_frames(model, folder, home, encoder)
    return encode_frames(model, folder, home, encoder).took_s


def _shares(model: Model, encoder: VisionEncoder, paths: list[Path], home: Home) -> Table:
    """Measure what each step of one frame costs, one after the other in one thread."""
    store, thumbnails = Store.open(home), Thumbnails(home)
    seconds = dict.fromkeys(_STEPS, 0.0)
    for path in paths:
        started = time.perf_counter()
        for name in _steps(path, model, encoder, store, thumbnails):
            ended = time.perf_counter()
            seconds[name] += ended - started
            started = ended
    total_s = sum(seconds.values())
    rows = tuple((name, took / len(paths) * 1e3, f"{took / total_s:.1%}") for name, took in seconds.items())
    remark = "One frame after the other in one thread; pass one has threads for all but the encoder."
    header = ("step", "ms a frame", "share")
    return Table("pass_one_shares", "Pass one: where its time goes", header, rows, (remark,))


def _steps(
    path: Path, model: Model, encoder: VisionEncoder, store: Store, thumbnails: Thumbnails
) -> Iterator[str]:
    """Take one frame through pass one, and yield the name of each step when it is done."""
    image = _decoded(path)
    yield "decode"
    pixels = pixel_digest(pixels_array(image))
    yield "hashing"
    thumbnails.write(pixels, image)
    yield "thumbnail"
    patches = cut_into_patches(image, model.spec.preprocessing)
    yield "preprocessing"
    features = encoder.encode(patches)
    yield "encoder"
    store.write(pixels, model.spec, features, encoder.provenance)
    yield "writing"


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
