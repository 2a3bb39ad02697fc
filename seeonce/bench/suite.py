"""The whole benchmark: the workloads one after the other, and a report that is kept after each.

Everything is made in a scratch folder that goes away afterwards; the user's store is never touched.
"""

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cache.base.errors import InputError
from cache.base.home import Home
from checkpoint.backend import memory_bytes
from checkpoint.blas import computes_on_cpu
from checkpoint.folder import DEMO
from seeonce.bench import decoding, encoding, memory, passes, profiling, resolution
from seeonce.bench.client import Endpoint
from seeonce.bench.endpoint import ServerComparison
from seeonce.bench.measure import Clock
from seeonce.bench.options import FULL, QUICK, BenchOptions, Dims, Workload
from seeonce.bench.prompt_experiment import PromptExperiment
from seeonce.bench.random_weights import write_checkpoint
from seeonce.bench.report import Machine, Report, Table
from seeonce.bench.store import StoreBench
from seeonce.runs.score import read_truth

Step = tuple[str, Callable[[], list[Table]]]
"""A workload's name, and what measures it."""

Say = Callable[[str], None]
Keep = Callable[[list[Table]], None]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PASS_ONE_SIZE, _NUM_ENDPOINT_FRAMES = (640, 400), 20
_SMALL_MEMORY_BYTES = 32_000_000_000  # 4B in bfloat16 is loaded twice, for live and for pass two


def bench(options: BenchOptions, say: Say, keep: Callable[[Report], None] = lambda _: None) -> Report:
    """Run the workloads one after the other; ``keep`` is given the report after each.

    Raises:
        CheckpointError: the checkpoint is missing or does not load.
        InputError: the other server does not answer, or the disk has no room for what is drawn.
    """
    started_at, started = datetime.now(UTC), time.perf_counter()
    with _room_checked(), tempfile.TemporaryDirectory(prefix="seeonce-bench-") as folder:
        scratch = Path(folder)
        name, checkpoint = _checkpoint(options, scratch, say)

        def with_tables(tables: list[Table], num_left: int) -> Report:
            took_s = time.perf_counter() - started
            return replace(report, took_s=took_s, tables=(*report.tables, *tables), num_left=num_left)

        def keep_part(tables: list[Table]) -> None:
            """Keep what a workload has found so far; it counts as not measured until it ends."""
            keep(with_tables(tables, report.num_left))

        steps = _Workloads(options, checkpoint, scratch, say, keep_part).asked_for()
        report = Report(name, Machine.here(), started_at, num_left=len(steps))
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


def _checkpoint(options: BenchOptions, scratch: Path, say: Say) -> tuple[str, str]:
    """Return what is measured, for the report, and the checkpoint: the one that is named, or a drawn one."""
    if options.model is not None:
        return options.model, options.model
    dims = options.dims
    if dims is None and computes_on_cpu():
        dims = Dims.small
    elif dims is None:
        dims = Dims.qwen3_vl_2b if memory_bytes() < _SMALL_MEMORY_BYTES else Dims.qwen3_vl_4b
    say(f"drawing random weights with the dimensions of {dims}")
    return f"random weights, {dims}", str(write_checkpoint(scratch / "checkpoint", dims))


class _Workloads:
    """What can be measured of one checkpoint; frames and stores lie in a scratch folder."""

    def __init__(self, options: BenchOptions, checkpoint: str, scratch: Path, say: Say, keep: Keep) -> None:
        self._options, self._checkpoint, self._scratch = options, checkpoint, scratch
        self._say, self._keep = say, keep
        self._extent = QUICK if options.quick else FULL
        self._clock = Clock(self._extent.num_repetitions, say)
        self._model = passes.Model.open(checkpoint, Home(scratch / "home"))
        self._images = passes.draw_frames(scratch / "frames", self._extent.num_frames, self._extent.size)

    def asked_for(self) -> list[Step]:
        """Return what the options ask for, in order."""
        of: dict[Workload, Step] = {
            Workload.prompts: ("prompt experiment", self._prompts),
            Workload.decoding: ("decoding", self._decoding),
            Workload.resolution: ("resolution", self._resolution),
            Workload.pass_one: ("pass one", self._pass_one),
            Workload.store: ("store", self._store),
            Workload.memory: ("memory", self._memory),
        }
        steps = [of[workload] for workload in Workload if workload in self._options.workloads]
        steps += [("profile", self._profile)] if self._options.profile else []
        return [*steps, ("another server", self._server)] if self._options.endpoint else steps

    def _encoded(self) -> passes.Encoded:
        return passes.encode_frames(self._model, self._images, Home(self._scratch / "home"))

    def _prompts(self) -> list[Table]:
        extent = self._extent
        experiment = PromptExperiment(
            self._encoded(), self._scratch, extent.num_questions, extent.max_tokens, 8, self._clock
        )
        return experiment.measure()

    def _decoding(self) -> list[Table]:
        return decoding.measure(self._encoded(), self._extent.levels, self._extent.max_tokens, self._clock)

    def _resolution(self) -> list[Table]:
        clock = Clock(self._extent.num_repetitions)  # a line for every load of some ms tells nobody anything
        return resolution.measure(self._model, self._scratch, self._extent.resolution_budget_s, clock)

    def _pass_one(self) -> list[Table]:
        extent = self._extent
        screens = passes.draw_frames(self._scratch / "screens", extent.num_screens, (1920, 1080))
        drawn = screens  # too large for a CPU
        if computes_on_cpu():
            folder = self._scratch / "pass-one-frames"
            drawn = passes.draw_frames(folder, extent.num_pass_one_frames, _PASS_ONE_SIZE)
        return encoding.measure(self._model, drawn, screens, self._scratch, extent.num_idle, self._clock)

    def _store(self) -> list[Table]:
        folder = self._scratch / "store"
        folder.mkdir()
        return [StoreBench(folder, self._extent.store_repetitions, self._extent.store_entries).table()]

    def _memory(self) -> list[Table]:
        extent = self._extent
        folders = [
            passes.draw_frames(self._scratch / f"frames-{num}", num, extent.size)
            for num in extent.memory_frames
        ]
        return memory.measure(self._checkpoint, folders, self._scratch)

    def _profile(self) -> list[Table]:
        return profiling.measure(self._model, self._images, self._scratch, self._extent.max_tokens)

    def _server(self) -> list[Table]:
        options = self._options
        frames = passes.draw_frames(self._scratch / "endpoint-frames", _NUM_ENDPOINT_FRAMES)
        asked = passes.encode_frames(self._model, frames, Home(self._scratch / "endpoint-home"))
        # The truth is known of the demo's answers alone.
        truth = read_truth(frames / "truth.csv") if options.model == DEMO else None
        endpoint = Endpoint(
            options.endpoint or "", options.endpoint_model or "default", options.endpoint_timeout_s
        )
        server = ServerComparison(endpoint, asked, passes.QUESTIONS, 64, truth, self._say)
        return server.measure(self._extent.levels, self._keep)
