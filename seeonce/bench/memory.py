"""Workload 6: what either pass holds at most, against mlx-vlm's whole model, and how it grows with frames.

Each figure comes from a process of its own: peaks of one process add up.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from cache.base.errors import SeeonceError
from cache.base.home import Home
from checkpoint.blas import put_openblas_in_front
from seeonce.bench.report import Row, Table

_HEADER = ("path", "frames", "weights MB", "peak MB", "peak less weights MB", "process peak MB")
_STATUS = Path("/proc/self/status")


def measure(checkpoint: str, folders: list[Path], scratch: Path) -> list[Table]:
    """Measure both passes and mlx-vlm, live, over each folder of frames; two questions a frame."""
    rows: list[Row] = []
    for number, folder in enumerate(folders):
        num_frames = len(list(folder.glob("*.png")))
        home = str(scratch / f"memory-{number}")
        for name, what in (("mlx-vlm live", "live"), ("pass one", "encode"), ("pass two", "describe")):
            measured_bytes = _in_own_process(what, checkpoint, str(folder), home)
            weights, highest, process = (num_bytes / 1e6 for num_bytes in measured_bytes)
            rows.append((name, num_frames, weights, highest, highest - weights, process))
    remark = (
        "Peaks of MLX's own memory: weights, KV caches, activations. The process holds Python and its "
        "libraries too."
    )
    return [Table("memory", "Memory", _HEADER, tuple(rows), (remark,))]


def _in_own_process(*arguments: str) -> list[int]:
    done = subprocess.run(  # noqa: S603 - our own module, with our own arguments
        [sys.executable, "-m", "seeonce.bench.memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SeeonceError(f"The memory of {arguments[0]} could not be measured ({last}).")
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(what: str, checkpoint: str, images: Path, home: Home) -> list[int]:
    """Do the work in this process; return the bytes of the weights, of MLX's peak and of the process's."""
    import mlx.core as mx

    from infer.limits import BatchLimits
    from seeonce.bench.baseline import LiveModel
    from seeonce.bench.passes import QUESTIONS, Ask, Model, PassTwo, encode_frames

    model = Model.open(checkpoint, home)
    if what == "encode":
        encoder = model.encoder()
        weights_bytes = mx.get_active_memory()
        encode_frames(model, images, home, encoder)
    elif what == "describe":
        encoded = encode_frames(model, images, home)  # all are there: nothing of the encoder is loaded
        pass_two = PassTwo(encoded)
        weights_bytes = mx.get_active_memory()
        pass_two.texts(encoded.requests(QUESTIONS[:2], 8), BatchLimits(max_num_seqs=4))
    else:
        live = LiveModel(model)
        weights_bytes = mx.get_active_memory()
        live.one_by_one([Ask(path, text) for path in images.glob("*.png") for text in QUESTIONS[:2]], 8)
    return [weights_bytes, mx.get_peak_memory(), _process_peak_bytes()]


def _process_peak_bytes() -> int:
    if _STATUS.exists():  # Linux, whose getrusage counts what the parent held before exec
        found = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(found["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    put_openblas_in_front()
    what, checkpoint, images, home = sys.argv[1:]
    print(json.dumps(_run(what, checkpoint, Path(images), Home(Path(home)))))
