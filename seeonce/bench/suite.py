"""The whole benchmark: which workloads, in which order and at which size.

Everything is made in a scratch folder that goes away afterwards; the user's store is never touched.
"""

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache.base.errors import InputError
from cache.base.home import Home
from checkpoint.backend import computes_on_cpu
from checkpoint.folder import DEMO
from seeonce.bench.random_weights import Dims
from seeonce.bench.report import Machine, Report, Table, memory_bytes, now

if TYPE_CHECKING:
    from seeonce.bench.passes import Encoded

Step = tuple[str, Callable[[], list[Table]]]
"""A workload's name, and what measures it."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SMALL_MEMORY_BYTES = 32_000_000_000  # 4B in bfloat16 is loaded twice, for live and for pass two


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
    num_pass_one_frames: int
    pass_one_size: tuple[int, int]
    num_idle: int
    memory_frames: tuple[int, ...]
    store_repetitions: int
    store_entries: int
    num_endpoint_frames: int
    levels: tuple[int, ...]


QUICK = Extent(
    num_frames=2, size=(512, 320), num_questions=(4,), max_tokens=16, num_repetitions=2,
    resolution_budget_s=8.0, num_pass_one_frames=4, pass_one_size=(640, 400), num_idle=400,
    memory_frames=(2, 8), store_repetitions=5, store_entries=1_000, num_endpoint_frames=20, levels=(1, 8),
)  # fmt: skip
FULL = Extent(
    num_frames=4, size=(640, 400), num_questions=(1, 4, 8), max_tokens=24, num_repetitions=3,
    resolution_budget_s=480.0, num_pass_one_frames=8, pass_one_size=(640, 400), num_idle=1_776,
    memory_frames=(4, 32), store_repetitions=15, store_entries=10_000, num_endpoint_frames=20,
    levels=(1, 2, 4, 8, 16),
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
    endpoint_timeout_s: float = 300.0
    profile: bool = False


def bench(
    options: BenchOptions, say: Callable[[str], None], keep: Callable[[Report], None] = lambda _: None
) -> Report:
    """Run the workloads one after the other; ``keep`` is given the report after each.

    Raises:
        CheckpointError: the checkpoint is missing or does not load.
        InputError: the other server does not answer, or the disk has no room for what is drawn.
    """
    started_at, started = now(), time.perf_counter()
    with _room_checked(), tempfile.TemporaryDirectory(prefix="seeonce-bench-") as folder:
        suite = _Suite(options, Path(folder), say)
        steps = suite.steps()
        report = Report(suite.name, Machine.here(), started_at, num_left=len(steps))

        def with_tables(tables: list[Table], num_left: int) -> Report:
            took_s = time.perf_counter() - started
            return replace(report, took_s=took_s, tables=(*report.tables, *tables), num_left=num_left)

        # What a workload has found so far is kept too; it counts as not measured until it ends.
        suite.keep_part = lambda tables: keep(with_tables(tables, report.num_left))
        for number, (title, measure) in enumerate(steps, 1):
            say(f"{title} ({number} of {len(steps)})")
            tables = measure()
            report = with_tables(tables, len(steps) - number)
            for table in tables:
                say(f"\n{table.as_markdown()}")
            keep(report)
    return report


@contextmanager
def _room_checked() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"The scratch folder cannot be written ({error}): set TMPDIR to a folder with more room."
        ) from error


class _Suite:
    """The workloads, and what they are measured on: a checkpoint, drawn frames, encoded once."""

    def __init__(self, options: BenchOptions, scratch: Path, say: Callable[[str], None]) -> None:
        """Find the checkpoint, or draw one."""
        from seeonce.bench.measure import Clock
        from seeonce.bench.passes import Model, draw_frames

        self._options, self._scratch, self._say = options, scratch, say
        self.keep_part: Callable[[list[Table]], None] = lambda _: None
        self._extent = QUICK if options.quick else FULL
        self._clock = Clock(self._extent.num_repetitions, say)
        self._home = Home(scratch / "home")
        dims = options.dims or _default_dims()
        self.name = options.model or f"random weights, {dims}"
        self._checkpoint = options.model or self._drawn(dims)
        self._model = Model.open(self._checkpoint, self._home)
        self._images = draw_frames(scratch / "frames", self._extent.num_frames, self._extent.size)

    def steps(self) -> list[Step]:
        """Return what was asked for, in order."""
        of = {
            Workload.prompts: ("prompt experiment", self._prompts),
            Workload.decoding: ("decoding", self._decoding),
            Workload.resolution: ("resolution", self._resolution),
            Workload.pass_one: ("pass one", self._pass_one),
            Workload.store: ("store", self._store),
            Workload.memory: ("memory", self._memory),
        }
        steps: list[Step] = [of[workload] for workload in Workload if workload in self._options.workloads]
        if self._options.profile:
            steps.append(("profile", self._profile))
        if self._options.endpoint is not None:
            steps.append(("another server", partial(self._beside, self._options.endpoint)))
        return steps

    def _drawn(self, dims: Dims) -> str:
        from seeonce.bench.random_weights import write_checkpoint

        self._say(f"drawing random weights with the dimensions of {dims}")
        return str(write_checkpoint(self._scratch / "checkpoint", dims))

    def _encoded(self) -> "Encoded":
        from seeonce.bench.passes import encode_frames

        return encode_frames(self._model, self._images, self._home)

    def _prompts(self) -> list[Table]:
        from seeonce.bench.prompt_experiment import PromptExperiment

        extent = self._extent
        return PromptExperiment(
            self._encoded(), self._scratch, extent.num_questions, extent.max_tokens, 8, self._clock
        ).measure()

    def _decoding(self) -> list[Table]:
        from seeonce.bench import decoding

        return decoding.measure(self._encoded(), self._extent.levels, self._extent.max_tokens, self._clock)

    def _resolution(self) -> list[Table]:
        from seeonce.bench import resolution
        from seeonce.bench.measure import Clock

        return resolution.measure(
            self._model, self._scratch, self._extent.resolution_budget_s, Clock(self._extent.num_repetitions)
        )

    def _pass_one(self) -> list[Table]:
        from seeonce.bench import encoding
        from seeonce.bench.passes import draw_frames

        images = draw_frames(
            self._scratch / "pass-one-frames", self._extent.num_pass_one_frames, self._extent.pass_one_size
        )
        return encoding.measure(self._model, images, self._scratch, self._extent.num_idle, self._clock)

    def _store(self) -> list[Table]:
        from seeonce.bench import store

        folder = self._scratch / "store"
        folder.mkdir()
        extent = self._extent
        return [store.StoreBench(folder, extent.store_repetitions, extent.store_entries).table()]

    def _memory(self) -> list[Table]:
        from seeonce.bench import memory
        from seeonce.bench.passes import draw_frames

        folders = tuple(
            draw_frames(self._scratch / f"frames-{number}", number, self._extent.size)
            for number in self._extent.memory_frames
        )
        return memory.measure(self._checkpoint, folders, self._scratch)

    def _profile(self) -> list[Table]:
        from seeonce.bench import profiling

        return profiling.measure(self._model, self._images, self._scratch, self._extent.max_tokens)

    def _beside(self, url: str) -> list[Table]:
        """Measure another server; the truth is known of the demo's answers alone."""
        from seeonce.bench.endpoint import Beside, Endpoint
        from seeonce.bench.passes import QUESTIONS, draw_frames, encode_frames
        from seeonce.demo.score import read_truth

        images = draw_frames(self._scratch / "endpoint-frames", self._extent.num_endpoint_frames)
        encoded = encode_frames(self._model, images, Home(self._scratch / "endpoint-home"))
        truth = read_truth(images / "truth.json") if self._options.model == DEMO else None
        endpoint = Endpoint(url, self._options.endpoint_model or "default", self._options.endpoint_timeout_s)
        beside = Beside(endpoint, encoded, QUESTIONS, 64, truth, self._say)
        return beside.measure(self._extent.levels, self.keep_part)


def _default_dims() -> Dims:
    if computes_on_cpu():
        return Dims.small
    return Dims.qwen3_vl_2b if memory_bytes() < _SMALL_MEMORY_BYTES else Dims.qwen3_vl_4b
