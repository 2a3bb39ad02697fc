"""The whole benchmark: the workloads one after the other, and a report that is kept after each.

Everything is made in a scratch folder that goes away afterwards; the user's store is never touched.
"""

import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from seeonce.bench.report import Machine, Report, Table, now
from seeonce.bench.store import StoreBench
from seeonce.demo.score import read_truth

Step = tuple[str, Callable[[], list[Table]]]
"""A workload's name, and what measures it."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SMALL_MEMORY_BYTES = 32_000_000_000  # 4B in bfloat16 is loaded twice, for live and for pass two


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
        scratch = Path(folder)
        name, checkpoint = _checkpoint(options, scratch, say)

        def with_tables(tables: list[Table], num_left: int) -> Report:
            took_s = time.perf_counter() - started
            return replace(report, took_s=took_s, tables=(*report.tables, *tables), num_left=num_left)

        def keep_part(tables: list[Table]) -> None:
            """Keep what a workload has found so far; it counts as not measured until it ends."""
            keep(with_tables(tables, report.num_left))

        steps = _steps(options, checkpoint, scratch, say, keep_part)
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


def _checkpoint(options: BenchOptions, scratch: Path, say: Callable[[str], None]) -> tuple[str, str]:
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


def _steps(
    options: BenchOptions,
    checkpoint: str,
    scratch: Path,
    say: Callable[[str], None],
    keep_part: Callable[[list[Table]], None],
) -> list[Step]:
    """Return what was asked for, in order."""
    extent = QUICK if options.quick else FULL
    clock, home = Clock(extent.num_repetitions, say), Home(scratch / "home")
    model = passes.Model.open(checkpoint, home)
    images = passes.draw_frames(scratch / "frames", extent.num_frames, extent.size)

    def encoded() -> passes.Encoded:
        return passes.encode_frames(model, images, home)

    def pass_one() -> list[Table]:
        screens = passes.draw_frames(scratch / "screens", extent.num_screens, (1920, 1080))
        drawn = screens  # too large for a CPU
        if computes_on_cpu():
            folder = scratch / "pass-one-frames"
            drawn = passes.draw_frames(folder, extent.num_pass_one_frames, extent.pass_one_size)
        return encoding.measure(model, drawn, screens, scratch, extent.num_idle, clock)

    def store() -> list[Table]:
        folder = scratch / "store"
        folder.mkdir()
        return [StoreBench(folder, extent.store_repetitions, extent.store_entries).table()]

    def peaks() -> list[Table]:
        folders = [passes.draw_frames(scratch / f"frames-{n}", n, extent.size) for n in extent.memory_frames]
        return memory.measure(checkpoint, folders, scratch)

    def beside(url: str) -> list[Table]:
        frames = passes.draw_frames(scratch / "endpoint-frames", extent.num_endpoint_frames)
        asked = passes.encode_frames(model, frames, Home(scratch / "endpoint-home"))
        # The truth is known of the demo's answers alone.
        truth = read_truth(frames / "truth.csv") if options.model == DEMO else None
        endpoint = Endpoint(url, options.endpoint_model or "default", options.endpoint_timeout_s)
        server = ServerComparison(endpoint, asked, passes.QUESTIONS, 64, truth, say)
        return server.measure(extent.levels, keep_part)

    of: dict[Workload, Step] = {
        Workload.prompts: (
            "prompt experiment",
            lambda: PromptExperiment(
                encoded(), scratch, extent.num_questions, extent.max_tokens, 8, clock
            ).measure(),
        ),
        Workload.decoding: (
            "decoding", lambda: decoding.measure(encoded(), extent.levels, extent.max_tokens, clock)
        ),
        Workload.resolution: (
            "resolution",  # a line for every load of some milliseconds would tell nobody anything
            lambda: resolution.measure(
                model, scratch, extent.resolution_budget_s, Clock(extent.num_repetitions)
            ),
        ),
        Workload.pass_one: ("pass one", pass_one),
        Workload.store: ("store", store),
        Workload.memory: ("memory", peaks),
    }  # fmt: skip
    steps = [of[workload] for workload in Workload if workload in options.workloads]
    if options.profile:
        steps.append(("profile", lambda: profiling.measure(model, images, scratch, extent.max_tokens)))
    if options.endpoint is not None:
        url = options.endpoint
        steps.append(("another server", lambda: beside(url)))
    return steps
