"""Workload 6: what either pass holds at most, against loading the whole model, and how it grows with frames.

Each figure is MLX's own peak in a process of its own: peaks of one process add up.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.table import Cell, Table
from cache.errors import SeeonceError
from cache.home import Home
from checkpoint.backend import put_openblas_in_front

_SELF = "bench.memory"


@dataclass(frozen=True, slots=True)
class _Peak:
    weights_bytes: int
    peak_bytes: int


def measure(checkpoint: str, folders: tuple[Path, ...], scratch: Path) -> Table:
    """Measure both passes over each folder of frames, and mlx-vlm's whole model."""
    whole = _probe("whole", checkpoint, str(scratch / "memory-whole"))
    rows: list[tuple[Cell, ...]] = [_row("mlx-vlm, whole model loaded", None, whole)]
    for number, folder in enumerate(folders):
        num_frames = len(list(folder.glob("*.png")))
        home = str(scratch / f"memory-{number}")
        for name, what in (("pass one", "encode"), ("pass two", "describe")):
            rows.append(_row(name, num_frames, _probe(what, checkpoint, str(folder), home)))
    header = ("path", "frames", "weights MB", "peak MB", "peak less weights MB")
    remarks = ("MLX's own peak of each process; a KV cache and one frame's activations are in it.",)
    return Table("memory", "Memory", header, tuple(rows), remarks)


def _row(name: str, num_frames: int | None, peak: _Peak) -> tuple[Cell, ...]:
    weights, highest = peak.weights_bytes / 1e6, peak.peak_bytes / 1e6
    return name, num_frames, weights, highest, highest - weights


def _probe(*arguments: str) -> _Peak:
    done = subprocess.run(  # noqa: S603 - our own module, with our own arguments
        [sys.executable, "-m", _SELF, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SeeonceError(f"The memory of {arguments[0]} could not be measured ({last}).")
    weights_bytes, peak_bytes = json.loads(done.stdout.splitlines()[-1])
    return _Peak(weights_bytes, peak_bytes)


def _run(what: str, checkpoint: str, *places: str) -> _Peak:
    """Do the work in this process and return what MLX held."""
    import mlx.core as mx

    from bench.stage import QUESTIONS, Model, Warm, encode_frames
    from infer.limits import BatchLimits

    if what == "whole":
        from bench.peers import LiveModel

        whole = LiveModel(Model.open(checkpoint, Home(Path(places[0]))))
        weights_bytes = mx.get_active_memory()
        del whole
        return _Peak(weights_bytes, mx.get_peak_memory())
    images, home = (Path(place) for place in places)
    model = Model.open(checkpoint, Home(home))
    if what == "encode":
        encoder = model.encoder()
        weights_bytes = mx.get_active_memory()
        encode_frames(model, images, Home(home), encoder)
        return _Peak(weights_bytes, mx.get_peak_memory())
    encoded = encode_frames(model, images, Home(home))
    warm = Warm(encoded)
    weights_bytes = mx.get_active_memory()
    warm.texts(encoded.requests(QUESTIONS[:2], 8), BatchLimits(max_num_seqs=4))
    return _Peak(weights_bytes, mx.get_peak_memory())


if __name__ == "__main__":
    put_openblas_in_front()
    measured = _run(*sys.argv[1:])
    print(json.dumps([measured.weights_bytes, measured.peak_bytes]))
