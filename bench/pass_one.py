"""Workload 4: pass one against a bare loop over the vision tower, where its time goes, and doing nothing."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from PIL import Image

from bench.measure import Contestant, alternate
from bench.stage import Model
from bench.table import Cell, Table
from cache.home import Home
from cache.key import pixel_digest
from cache.pixel_index import PixelIndex
from cache.store import Durability, Store
from precompute.encode import encode_recording
from precompute.vision import VisionEncoder
from sources.folder import open_folder
from sources.pixels import pixels_array


def measure(model: Model, images: Path, scratch: Path, num_repetitions: int, num_idle: int) -> Table:
    """Compare pass one with the tower alone over the same pictures; then run it with nothing to do.

    ``num_idle`` unchanged frames are looked at in the second run.
    """
    encoder = model.encoder()
    paths = sorted(images.glob("*.png"))
    patches = [encoder.preprocess(_decoded(path)) for path in paths]
    homes = (Home(scratch / f"pass-one-{number}") for number in count())

    def tower() -> None:
        for one in patches:
            encoder.encode(one)

    def pass_one() -> None:
        _encode(model, images, next(homes), encoder)

    bare, ours = alternate(
        [Contestant("bare vision tower", tower), Contestant("pass one", pass_one)], num_repetitions
    )
    rows: list[tuple[Cell, ...]] = [
        (measured.name, len(paths), measured.timing.median_s, f"{measured.timing.spread:.0%}",
         len(paths) / measured.timing.median_s, bare.timing.median_s / measured.timing.median_s)
        for measured in (bare, ours)
    ]  # fmt: skip
    idle_s = _idle(model, paths[0], scratch, num_idle, encoder)
    rows.append(("pass one, nothing to do", num_idle, idle_s, "–", num_idle / idle_s, None))
    header = ("path", "frames", "seconds", "spread", "frames/s", "of the bare tower")
    remarks = (_shares(model, paths, next(homes), encoder),)
    return Table("pass_one", "Pass one", header, tuple(rows), remarks)


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _encode(model: Model, images: Path, home: Home, encoder: VisionEncoder) -> None:
    store = Store.open(home, durability=Durability.batch)
    with PixelIndex(home) as index:
        encode_recording(open_folder(images), model.spec, store, index, lambda: encoder)


def _idle(model: Model, picture: Path, scratch: Path, num_frames: int, encoder: VisionEncoder) -> float:
    """Encode many small different pictures, and return the seconds of a second run over them."""
    folder = scratch / "idle"
    folder.mkdir()
    small = _decoded(picture).resize((64, 64))
    for number in range(num_frames):
        small.putpixel((number % 64, number // 64), (255, 0, 255))
        small.save(folder / f"{number:05d}.png")
    home = Home(scratch / "idle-home")
    _encode(model, folder, home, encoder)
    started = time.perf_counter()
    _encode(model, folder, home, encoder)
    return time.perf_counter() - started


def _shares(model: Model, paths: list[Path], home: Home, encoder: VisionEncoder) -> str:
    """Say what each step of one frame costs, one after the other in one thread."""
    store = Store.open(home, durability=Durability.batch)
    seconds = dict.fromkeys(("decode", "hashing", "preprocessing", "encoder", "writing"), 0.0)
    for path in paths:
        for name, took in _steps(model, path, store, encoder):
            seconds[name] += took
    total_s = sum(seconds.values())
    shares = ", ".join(f"{name} {took / total_s:.1%}" for name, took in seconds.items())
    return f"One frame after the other in one thread: {shares}. Pass one has threads for all but the encoder."


def _steps(model: Model, path: Path, store: Store, encoder: VisionEncoder) -> Iterator[tuple[str, float]]:
    started = time.perf_counter()
    image = _decoded(path)
    yield "decode", (decoded := time.perf_counter()) - started
    pixels = pixel_digest(pixels_array(image))
    yield "hashing", (hashed := time.perf_counter()) - decoded
    patches = encoder.preprocess(image)
    yield "preprocessing", (prepared := time.perf_counter()) - hashed
    features = encoder.encode(patches)
    yield "encoder", (encoded := time.perf_counter()) - prepared
    store.write(pixels, model.spec, features, encoder.provenance)
    yield "writing", time.perf_counter() - encoded
