"""What is measured, of which checkpoint, and how much of it."""

from dataclasses import dataclass
from enum import StrEnum


class Dims(StrEnum):
    """Which dimensions: those of a published checkpoint, or small ones for a CPU."""

    small = "small"
    qwen3_vl_2b = "qwen3-vl-2b"
    qwen3_vl_4b = "qwen3-vl-4b"
    qwen3_vl_8b = "qwen3-vl-8b"
    qwen3_5_0_8b = "qwen3.5-0.8b"
    qwen3_5_2b = "qwen3.5-2b"
    qwen3_5_4b = "qwen3.5-4b"
    qwen3_5_9b = "qwen3.5-9b"


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
    num_screens: int
    num_idle: int
    memory_frames: tuple[int, ...]
    store_repetitions: int
    store_entries: int
    levels: tuple[int, ...]


QUICK = Extent(
    num_frames=2, size=(512, 320), num_questions=(4,), max_tokens=16, num_repetitions=2,
    resolution_budget_s=8.0, num_pass_one_frames=4, num_screens=2, num_idle=400,
    memory_frames=(2, 8), store_repetitions=5, store_entries=1_000, levels=(1, 8),
)  # fmt: skip
FULL = Extent(
    num_frames=4, size=(640, 400), num_questions=(1, 4, 8), max_tokens=24, num_repetitions=3,
    resolution_budget_s=480.0, num_pass_one_frames=8, num_screens=24, num_idle=1_776,
    memory_frames=(4, 32), store_repetitions=15, store_entries=10_000, levels=(1, 4, 8, 16, 32),
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
