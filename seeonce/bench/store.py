"""Workload 5: speed of the store beside bare file operations.

The figures need a machine that does nothing else: the checks of a write run in a second thread, and need a
free second core.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.base.home import Home
from cache.base.listener import Listener
from cache.entry import CHUNK_NAME, Features, Provenance
from cache.key import EncoderSpec, EntryKey, PixelDigest, Preprocessing, WeightsDigest
from cache.layout import entry_folder
from cache.stats import store_stats
from cache.store import Durability, Store
from seeonce.bench.measure import Clock, Measured
from seeonce.bench.report import Row, Table
from seeonce.verifier.byte_check import check_store_bytes

_PREPROCESSING = Preprocessing(
    processor_class="Qwen3VLProcessor",
    min_pixels=65_536,
    max_pixels=2_073_600,
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    resample="bicubic",
)
IMAGINED_ENCODER = EncoderSpec(
    architecture="qwen3_vl",
    depth=4,
    hidden_size=32,
    num_heads=2,
    out_hidden_size=8,
    num_position_embeddings=2304,
    deepstack_visual_indexes=(1, 2, 3),
    weights=WeightsDigest(bytes(range(32))),
    quantization="none",
    preprocessing=_PREPROCESSING,
    compute_dtype="bfloat16",
    epoch=1,
)


FRAME_SHAPE = (4, 2040, 2560)  # one 1920x1080 frame under 4B: 41.8 MB
SMALL_SHAPE = (4, 6, IMAGINED_ENCODER.out_hidden_size)
FEW, SAMPLE = 100, 100
BATCH = 16
_NUM_VERIFIED = 8

_HEADER = ("what", "median_s", "spread", "beside_median_s", "ratio", "bound", "holds")
_FRAME_ENCODER = replace(IMAGINED_ENCODER, out_hidden_size=FRAME_SHAPE[2])
_PROVENANCE = Provenance("0", "0", "0", "cpu", "bench", "bench")


def features(shape: tuple[int, int, int]) -> Features:
    """Return random bits of a shape, as bfloat16."""
    array = np.random.default_rng(0).integers(0, 1 << 16, shape, dtype=np.uint16)
    return Features(array, "bfloat16", (1, 2, 2 * shape[1]), 2)


class StoreBench:
    """A folder with stores in it, and the measurements on them."""

    def __init__(self, folder: Path, num_repetitions: int, num_many: int) -> None:
        self._folder, self._repeat, self._num_many = folder, num_repetitions, num_many
        self._rows: list[Row] = []
        self._next = 0

    def table(self) -> Table:
        """Measure everything."""
        self._large_entries()
        self._verify_bytes()
        few, many = self._filled("few", FEW), self._filled("many", self._num_many)
        self._whole_store(many)
        self._each_entry(few, many)
        self._batches()
        remark = (
            "`beside` is the bare operation of the same row; `ratio` is time over time, for the write speed "
            "over speed; `spread` is slowest minus fastest over the median. Load average at the end: "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
        )
        return Table("store", "The store beside bare file operations", _HEADER, tuple(self._rows), (remark,))

    def _large_entries(self) -> None:
        store, frame = self._store("large"), features(FRAME_SHAPE)
        payload = frame.array.reshape(-1).view(np.uint8).data
        key = self._write(store, frame, _FRAME_ENCODER)
        chunk = Path(entry_folder(store.path, key), CHUNK_NAME)
        buffer = np.empty(chunk.stat().st_size, np.uint8)
        read, bare, check = self._in_turn(
            lambda: store.read(key, buffer), lambda: _bare_read(chunk, buffer), lambda: store.check(key)
        )
        self._row("read 42 MB, every byte checked", read, bare, at_most=1.5)
        self._row("check 42 MB, crc32c and BLAKE3", check, bare)
        plain = self._folder / "plain"

        def clean() -> None:
            plain.unlink()
            _empty(store)

        bare, write = self._in_turn(
            lambda: _bare_write(plain, payload),
            lambda: self._write(store, frame, _FRAME_ENCODER),
            clean=clean,
        )
        self._row("write 42 MB at durability none, as speed", bare, write, at_least=0.5)

    def _verify_bytes(self) -> None:
        """Measure the bytes level of verify-cache over several large entries, and reading their files."""
        store, frame = self._store("verify"), features(FRAME_SHAPE)
        for _ in range(_NUM_VERIFIED):
            self._write(store, frame, _FRAME_ENCODER)
        chunks = sorted(store.path.rglob(CHUNK_NAME))
        buffer = np.empty(chunks[0].stat().st_size, np.uint8)
        os.sync()

        def in_turn(forget: Callable[[], None]) -> list[Measured[object]]:
            def verify() -> None:
                forget()
                check_store_bytes(store, Listener())  # a bar would be measured too

            def read() -> None:
                forget()
                for chunk in chunks:
                    _bare_read(chunk, buffer)

            return self._in_turn(read, verify)

        what = f"verify-cache bytes of {_NUM_VERIFIED} entries of 42 MB"
        read, verify = in_turn(lambda: None)
        self._row(f"{what}, files in memory, as speed", read, verify)
        if hasattr(os, "posix_fadvise"):
            read, verify = in_turn(lambda: _drop_from_memory(chunks))
            self._row(f"{what}, from the disk, as speed", read, verify, at_least=0.7)

    def _whole_store(self, store: Store) -> None:
        keys = list(store.keys())
        has, stats = self._in_turn(lambda: [store.has(key) for key in keys], lambda: store_stats(store.home))
        self._row(f"has for {len(keys):,} keys", has, None, at_most=1.0)
        self._row(f"stats on {len(keys):,} entries", stats, None, at_most=2.0)

    def _each_entry(self, few: Store, many: Store) -> None:
        small = features(SMALL_SHAPE)

        def sample(store: Store) -> list[EntryKey]:
            keys = sorted(store.keys(), key=lambda key: key.raw)
            return keys[:: len(keys) // SAMPLE][:SAMPLE]

        of_few, of_many = sample(few), sample(many)
        pairs: tuple[tuple[str, Callable[[], object], Callable[[], object]], ...] = (
            ("has", lambda: [many.has(key) for key in of_many], lambda: [few.has(key) for key in of_few]),
            ("read", lambda: [many.read(key) for key in of_many], lambda: [few.read(key) for key in of_few]),
            (
                "write",
                lambda: [self._write(many, small, IMAGINED_ENCODER) for _ in range(SAMPLE)],
                lambda: [self._write(few, small, IMAGINED_ENCODER) for _ in range(SAMPLE)],
            ),
        )
        for name, in_many, in_few in pairs:
            large, little = self._in_turn(in_many, in_few)
            self._row(f"{name} of {SAMPLE} entries in {self._num_many:,}, beside {FEW}", large, little)

    def _batches(self) -> None:
        store, small = self._store("batches", Durability.batch), features(SMALL_SHAPE)

        def together() -> None:
            with store.batch() as batch:
                for _ in range(BATCH):
                    batch.add(self._picture(), IMAGINED_ENCODER, small, _PROVENANCE)
                batch.commit()

        one_batch, one_by_one = self._in_turn(
            together, lambda: [self._write(store, small, IMAGINED_ENCODER) for _ in range(BATCH)]
        )
        self._row(f"{BATCH} small entries at durability batch, beside one by one", one_batch, one_by_one)

    def _in_turn(
        self, *runs: Callable[[], object], clean: Callable[[], None] = lambda: None
    ) -> list[Measured[object]]:
        """Time each in turn; what ``clean`` does after every round is not timed."""
        ways = {str(number): run for number, run in enumerate(runs)}
        return Clock(self._repeat, num_warm_ups=2).alternate(ways, clean)

    def _row(
        self,
        what: str,
        timed: Measured[object],
        beside: Measured[object] | None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a row; the bound is of the ratio, or of the seconds where there is nothing beside."""
        ratio = timed.median_s / beside.median_s if beside else None
        value = timed.median_s if ratio is None else ratio
        bound = holds = None
        if at_most is not None:
            bound, holds = f"≤ {at_most:g}", "yes" if value <= at_most else "no"
        if at_least is not None:
            bound, holds = f"≥ {at_least:g}", "yes" if value >= at_least else "no"
        beside_s = beside.median_s if beside else None
        self._rows.append((what, timed.median_s, timed.spread, beside_s, ratio, bound, holds))

    def _filled(self, name: str, num_entries: int) -> Store:
        store, small = self._store(name), features(SMALL_SHAPE)
        for _ in range(num_entries):
            self._write(store, small, IMAGINED_ENCODER)
        return store

    def _store(self, name: str, durability: Durability = Durability.none) -> Store:
        return Store.open(Home(self._folder / name), durability=durability)

    def _write(self, store: Store, entry: Features, spec: EncoderSpec) -> EntryKey:
        return store.write(self._picture(), spec, entry, _PROVENANCE)

    def _picture(self) -> PixelDigest:
        self._next += 1
        return PixelDigest(self._next.to_bytes(32, "big"))


def _bare_read(path: Path, buffer: NDArray[np.uint8]) -> None:
    with path.open("rb", buffering=0) as file:
        file.readinto(buffer.data)


def _bare_write(path: Path, content: memoryview) -> None:
    with path.open("xb", buffering=0) as file:
        while content:
            content = content[file.write(content) :]


def _drop_from_memory(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _empty(store: Store) -> None:
    for key in list(store.keys()):
        shutil.rmtree(entry_folder(store.path, key))
