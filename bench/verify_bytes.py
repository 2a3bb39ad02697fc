"""How fast verify-cache checks bytes, against plain reading of the same files, in turn within one run.

    python -m bench.verify_bytes --entries 16 --rounds 5

Owns a throwaway store of entries as large as those of a 1080p frame. Prints ratios: 1.0 is plain reading, one
thread, into a reused buffer. ``cold`` asks the system to drop the files from its cache before each turn.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cache.entry import Features, Provenance
from cache.home import Home
from cache.key import EncoderSpec, PixelDigest, Preprocessing, WeightsDigest
from cache.store import Durability, Store
from verify.byte_check import check_store_bytes

_GRID, _HIDDEN = (1, 68, 120), 2560
_BUFFER_BYTES = 1 << 20


class _Silent:
    """Hears nothing: a bar would be measured too."""

    def say(self, line: str) -> None:
        """Ignore a line."""

    def begin(self, num_results: int, what: str = "", unit: str = "") -> None:
        """Ignore what comes."""

    def advance(self, num_done: int = 1) -> None:
        """Ignore what is done."""


def fill(home: Path, num_entries: int) -> Store:
    """Write entries of random bits, 41.8 MB each."""
    preprocessing = Preprocessing(
        "Qwen3VLProcessor", 1024, 1 << 24, 16, 2, 2, True, 1 / 255, True, (0.5,) * 3, (0.5,) * 3, "bicubic"
    )
    spec = EncoderSpec(
        "qwen3_vl", 24, 1024, 16, _HIDDEN, 2304, (5, 11, 17), WeightsDigest(bytes(32)), "none", preprocessing,
        "bfloat16", 1,
    )  # fmt: skip
    store = Store.open(Home(home), durability=Durability.none)
    rng = np.random.default_rng(0)
    for number in range(num_entries):
        bits = rng.integers(0, 1 << 16, (4, _GRID[1] * _GRID[2] // 4, _HIDDEN), dtype=np.uint16)
        pixels = PixelDigest(number.to_bytes(32, "big"))
        store.write(pixels, spec, Features(bits, "bfloat16", _GRID, 2), Provenance("", "", "", "", "", ""))
    return store


def read_plainly(paths: list[Path]) -> None:
    """Read files from start to end."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def seconds_of(work: Callable[[], object], paths: list[Path], cold: bool) -> float:
    """Time one turn."""
    for path in paths if cold else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure both in turn and print the median of each round's ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="seeonce-bench-") as name:
        store = fill(Path(name) / "home", options.entries)
        paths = sorted(store.path.rglob("c.0.0.0"))
        num_bytes = sum(path.stat().st_size for path in paths)
        os.sync()
        for cold in (False, True) if hasattr(os, "posix_fadvise") else (False,):
            ratios = []
            for _ in range(options.rounds):
                plain = seconds_of(lambda: read_plainly(paths), paths, cold)
                checked = seconds_of(lambda: check_store_bytes(store.home, store, _Silent()), paths, cold)
                ratios.append(plain / checked)
            words = f"{statistics.median(ratios):.2f} (each round: {', '.join(f'{r:.2f}' for r in ratios)})"
            print(
                f"{'cold' if cold else 'warm'}: bytes at {words} of plain reading, {num_bytes / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    main()
