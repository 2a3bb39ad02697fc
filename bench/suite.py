"""The whole benchmark: which workloads at which size, and the report that they make.

Owns sizes, order and the verdict. Everything is made in a scratch folder that goes away afterwards.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from bench.dims import Dims
from bench.table import Table
from cache.home import Home
from checkpoint.backend import computes_on_cpu, installed_version, provenance
from checkpoint.folder import DEMO

if TYPE_CHECKING:
    from bench.stage import Model

_DISTRIBUTIONS = ("seeonce", "mlx", "mlx-vlm", "transformers", "zarr")
_THRESHOLDS = ((3.0, "strong"), (2.0, "yes"), (1.5, "marginal"))  # times as fast as live


class Workload(StrEnum):
    """What is measured."""

    prompts = "prompts"
    decoding = "decoding"
    resolution = "resolution"
    pass_one = "pass-one"  # noqa: S105 - no password
    store = "store"
    memory = "memory"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. Sizes are (width, height) in pixels."""

    num_frames: int
    size: tuple[int, int]
    num_questions: tuple[int, ...]
    max_tokens: int
    num_repetitions: int
    resolution_budget_s: float
    num_idle: int
    memory_frames: tuple[int, ...]
    store_repetitions: int
    store_entries: int
    num_endpoint_frames: int
    levels: tuple[int, ...]


QUICK = Extent(
    num_frames=3, size=(512, 320), num_questions=(4,), max_tokens=16, num_repetitions=2,
    resolution_budget_s=15.0, num_idle=400, memory_frames=(2, 8), store_repetitions=5, store_entries=1_000,
    num_endpoint_frames=20, levels=(1, 8),
)  # fmt: skip
FULL = Extent(
    num_frames=6, size=(640, 400), num_questions=(1, 4, 8), max_tokens=24, num_repetitions=3,
    resolution_budget_s=150.0, num_idle=1_776, memory_frames=(4, 32), store_repetitions=15,
    store_entries=10_000, num_endpoint_frames=20, levels=(1, 2, 4, 8, 16),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure, of which checkpoint: ``model``, else random weights of ``dims``."""

    dims: Dims | None = None
    model: str | None = None
    quick: bool = False
    workloads: tuple[Workload, ...] = tuple(Workload)
    endpoint: str | None = None
    endpoint_model: str | None = None
    profile: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, where, and how it came out."""

    checkpoint: str
    machine: dict[str, str]
    started_at: str
    tables: tuple[Table, ...]
    verdict: str

    def as_markdown(self) -> str:
        """Return the report for a person."""
        machine = "\n".join(f"- {name}: {value}" for name, value in self.machine.items())
        head = f"# Benchmark of {self.checkpoint}\n\n{self.started_at}\n\n{machine}\n\n**{self.verdict}**\n"
        return "\n".join([head, *(table.as_markdown() for table in self.tables)])

    def as_json(self) -> dict[str, object]:
        """Return the report for machines."""
        return {
            "format": 1,
            "checkpoint": self.checkpoint,
            "machine": self.machine,
            "started_at": self.started_at,
            "tables": [table.as_json() for table in self.tables],
            "verdict": self.verdict,
        }


def bench(options: BenchOptions, say: Callable[[str], None]) -> Bench:
    """Run the workloads one after the other.

    Raises:
        CheckpointError: the checkpoint is missing or does not load.
        InputError: the other server does not answer.
    """
    started_at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with tempfile.TemporaryDirectory(prefix="seeonce-bench-") as folder:
        scratch = Path(folder)
        checkpoint = _checkpoint(options, scratch, say)
        tables = []
        for table in _tables(options, checkpoint, scratch, say):
            say(table.as_markdown())
            tables.append(table)
    name = options.model or f"random weights, {_dims(options)}"
    return Bench(name, _machine(), started_at, tuple(tables), _verdict(tables))


def _dims(options: BenchOptions) -> Dims:
    return options.dims or (Dims.small if computes_on_cpu() else Dims.qwen3_vl_4b)


def _checkpoint(options: BenchOptions, scratch: Path, say: Callable[[str], None]) -> str:
    if options.model is not None:
        return options.model
    from bench.random_weights import write_checkpoint

    say(f"drawing random weights with the dimensions of {_dims(options)}")
    return str(write_checkpoint(scratch / "checkpoint", _dims(options)))


def _tables(
    options: BenchOptions, checkpoint: str, scratch: Path, say: Callable[[str], None]
) -> Iterator[Table]:
    from bench import decoding, memory, pass_one, profiling, prompt_experiment, resolution, store
    from bench.stage import Model, draw_frames, encode_frames

    extent = QUICK if options.quick else FULL
    home = Home(scratch / "home")
    model = Model.open(checkpoint, home)
    images = draw_frames(scratch / "frames", extent.num_frames, extent.size)
    if Workload.prompts in options.workloads:
        say("prompt experiment")
        sizes = prompt_experiment.Sizes(
            extent.num_questions, extent.max_tokens, num_in_flight=8, num_repetitions=extent.num_repetitions
        )
        yield prompt_experiment.measure(encode_frames(model, images, home), scratch, sizes)
    if Workload.decoding in options.workloads:
        say("decoding")
        encoded = encode_frames(model, images, home)
        yield decoding.measure(encoded, extent.levels, extent.max_tokens, extent.num_repetitions)
    if Workload.resolution in options.workloads:
        say("resolution")
        yield resolution.measure(model, scratch, extent.num_repetitions, extent.resolution_budget_s)
    if Workload.pass_one in options.workloads:
        say("pass one")
        yield pass_one.measure(model, images, scratch, extent.num_repetitions, extent.num_idle)
    if Workload.store in options.workloads:
        say("store")
        folder = scratch / "store"
        folder.mkdir()
        yield store.Bench(folder, extent.store_repetitions, extent.store_entries).table()
    if Workload.memory in options.workloads:
        say("memory")
        folders = tuple(
            draw_frames(scratch / f"frames-{number}", number, extent.size) for number in extent.memory_frames
        )
        yield memory.measure(checkpoint, folders, scratch)
    if options.profile:
        say("profile")
        yield profiling.measure(model, images, scratch, extent.max_tokens)
    if options.endpoint is not None:
        yield _beside(options, options.endpoint, model, extent, scratch, say)


def _beside(
    options: BenchOptions, url: str, model: "Model", extent: Extent, scratch: Path, say: Callable[[str], None]
) -> Table:
    """Measure another server; the truth is known of the demo's answers alone."""
    from bench import endpoint
    from bench.stage import QUESTIONS, draw_frames, encode_frames
    from demo.score import read_truth

    say(url)
    images = draw_frames(scratch / "endpoint-frames", extent.num_endpoint_frames)
    encoded = encode_frames(model, images, Home(scratch / "endpoint-home"))
    truth = read_truth(images / "truth.json") if options.model == DEMO else None
    other = endpoint.Endpoint(url, options.endpoint_model or "default")
    return endpoint.measure(other, encoded, QUESTIONS, extent.levels, 64, truth)


def _machine() -> dict[str, str]:
    here = provenance()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory_gb:.0f} GB",
        "device": f"{here.device}, {here.chip}",
        "versions": ", ".join(f"{name} {installed_version(name)}" for name in _DISTRIBUTIONS),
        "python": platform.python_version(),
    }


def _verdict(tables: list[Table]) -> str:
    """Judge by stated thresholds: 3 times as fast as live is strong, 2 yes, 1.5 marginal; no answer wrong."""
    for table in tables:
        if table.name == "prompt_experiment":
            num_questions, _, _, _, speed_up, num_answers, num_wrong = table.rows[-1]
            if not isinstance(speed_up, float) or num_wrong:
                return f"Wrong: {num_wrong} of {num_answers} answers are not those of live."
            word = next((word for least, word in _THRESHOLDS if speed_up >= least), "no gain")
            return (
                f"{word}: {speed_up:.1f} times as fast as mlx-vlm live for {num_questions} questions a "
                f"frame, all {num_answers} answers those of live."
            )
    return "No verdict: the prompt experiment was not measured."
