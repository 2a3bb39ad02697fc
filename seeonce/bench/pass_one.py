"""Workload 4: pass one against a bare loop over the vision tower, where its time goes, and doing nothing."""

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from cache.base.home import Home
from cache.key import pixel_digest
from cache.store import Store
from cache.thumbnails import Thumbnails
from precompute.encoder import Patches
from seeonce.bench.measure import Clock, Contestant
from seeonce.bench.peers import BareTower
from seeonce.bench.report import Cell, Found, Table
from seeonce.bench.stage import Encoded, Model, encode_frames
from sources.pixels import pixels_array

_HEADER = ("path", "frames", "seconds", "spread", "frames/s", "of the bare tower", "unlike the tower's")
_STEPS = ("decode", "hashing", "thumbnail", "preprocessing", "encoder", "writing")


class PassOne:
    """A folder of pictures, and what encodes them: as ``seeonce encode`` does, and bare."""

    def __init__(self, model: Model, images: Path, scratch: Path, clock: Clock) -> None:
        """Load the vision half for each of the two."""
        self._model, self._images, self._scratch, self._clock = model, images, scratch, clock
        self._paths = sorted(images.glob("*.png"))
        self._encoder, self._tower = model.encoder(), BareTower(model)
        self._homes = (Home(scratch / f"pass-one-{number}") for number in count())

    def measure(self, num_idle: int) -> Found:
        """Compare pass one with the tower alone over the same pictures; then run it with nothing to do.

        ``num_idle`` unchanged frames are looked at in that second run.
        """
        patches = [self._encoder.preprocess(_decoded(path)) for path in self._paths]
        contestants: list[Contestant[Encoded | None]] = [
            Contestant("bare vision tower", lambda: self._bare(patches)),
            Contestant("pass one", self._pass_one),
        ]
        bare, ours = self._clock.alternate(contestants)
        num_unlike = None if ours.outcome is None else self._num_unlike(ours.outcome, patches)
        num_frames, bare_s, ours_s = len(self._paths), bare.timing.median_s, ours.timing.median_s
        idle_s = self._idle(num_idle)
        rows: tuple[tuple[Cell, ...], ...] = (
            (
                bare.name, num_frames, bare_s, f"{bare.timing.spread:.0%}", num_frames / bare_s, 1, None
            ),
            (
                ours.name, num_frames, ours_s, f"{ours.timing.spread:.0%}", num_frames / ours_s,
                bare_s / ours_s, num_unlike,
            ),
            ("pass one, nothing to do", num_idle, idle_s, None, num_idle / idle_s, None, None),
        )  # fmt: skip
        width, height = _decoded(self._paths[0]).size
        title = f"Pass one: {num_frames} frames of {width}x{height}"
        return Found((Table("pass_one", title, _HEADER, rows), self._shares()))

    def _bare(self, patches: Sequence[Patches]) -> None:
        for one in patches:
            self._tower.encode(one)

    def _pass_one(self) -> Encoded:
        return encode_frames(self._model, self._images, next(self._homes), self._encoder)

    def _num_unlike(self, encoded: Encoded, patches: Sequence[Patches]) -> int:
        """Count frames whose stored features are not bit for bit the tower's."""
        num_unlike = 0
        for frame, one in zip(encoded.manifest.frames, patches, strict=True):
            stored = encoded.store.read(frame.key)
            num_unlike += stored is None or not np.array_equal(stored.array, self._tower.features(one))
        return num_unlike

    def _idle(self, num_frames: int) -> float:
        """Encode many small different pictures, and return the seconds of a second run over them."""
        folder = self._scratch / "idle"
        folder.mkdir()
        small = _decoded(self._paths[0]).resize((64, 64))
        for number in range(num_frames):
            small.putpixel((number % 64, number // 64), (255, 0, 255))
            small.save(folder / f"{number:05d}.png")
        home = Home(self._scratch / "idle-home")
        encode_frames(self._model, folder, home, self._encoder)
        started = time.perf_counter()
        encode_frames(self._model, folder, home, self._encoder)
        return time.perf_counter() - started

    def _shares(self) -> Table:
        """Measure what each step of one frame costs, one after the other in one thread."""
        home = next(self._homes)
        store, thumbnails = Store.open(home), Thumbnails(home)
        seconds = dict.fromkeys(_STEPS, 0.0)
        for path in self._paths:
            for name, took_s in self._steps(path, store, thumbnails):
                seconds[name] += took_s
        total_s = sum(seconds.values())
        rows = tuple(
            (name, took / len(self._paths) * 1e3, f"{took / total_s:.1%}") for name, took in seconds.items()
        )
        remark = "One frame after the other in one thread; pass one has threads for all but the encoder."
        header = ("step", "ms a frame", "share")
        return Table("pass_one_shares", "Pass one: where its time goes", header, rows, (remark,))

    def _steps(self, path: Path, store: Store, thumbnails: Thumbnails) -> Iterator[tuple[str, float]]:
        started = time.perf_counter()
        image = _decoded(path)
        yield "decode", (decoded := time.perf_counter()) - started
        pixels = pixel_digest(pixels_array(image))
        yield "hashing", (hashed := time.perf_counter()) - decoded
        thumbnails.write(pixels, image)
        yield "thumbnail", (small := time.perf_counter()) - hashed
        patches = self._encoder.preprocess(image)
        yield "preprocessing", (prepared := time.perf_counter()) - small
        features = self._encoder.encode(patches)
        yield "encoder", (encoded := time.perf_counter()) - prepared
        store.write(pixels, self._model.spec, features, self._encoder.provenance)
        yield "writing", time.perf_counter() - encoded


def _decoded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
