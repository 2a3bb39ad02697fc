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

from bench.dims import Dims, write_checkpoint
from bench.table import Table
from cache.home import Home
from checkpoint.backend import computes_on_cpu, installed_version, provenance
from checkpoint.folder import DEMO
from demo.score import read_truth

_DISTRIBUTIONS = ("seeonce", "mlx", "mlx-vlm", "transformers", "zarr")


class Workload(StrEnum):
    """What is measured."""

    prompts = "prompts"
    decoding = "decoding"
    resolution = "resolution"
    pass_one = "pass-one"
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


QUICK = Extent(3, (512, 320), (4,), 16, 2, 15.0, 1776, (2, 8))
FULL = Extent(8, (640, 400), (1, 4, 8), 24, 3, 240.0, 1776, (4, 32))


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure, of which checkpoint: ``model`` is a folder or hub id, else random weights of ``dims``."""

    dims: Dims | None = None
    model: str | None = None
    quick: bool = False
    workloads: tuple[Workload, ...] = tuple(Workload)
    endpoint: str | None = None
    endpoint_model: str | None = None
