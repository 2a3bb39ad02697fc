"""The dimensions of published Qwen3-VL checkpoints, and small ones for a CPU."""

from dataclasses import dataclass
from enum import StrEnum


class Dims(StrEnum):
    """Which dimensions: those of a published checkpoint, or small ones for a CPU."""

    small = "small"
    qwen3_vl_2b = "qwen3-vl-2b"
    qwen3_vl_4b = "qwen3-vl-4b"
    qwen3_vl_8b = "qwen3-vl-8b"


@dataclass(frozen=True, slots=True)
class Half:
    """One transformer: its depth, width, feed-forward width and heads."""

    depth: int
    hidden: int
    intermediate: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one checkpoint. Source: the config.json of Qwen/Qwen3-VL-*-Instruct."""

    text: Half
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    mrope_section: tuple[int, int, int]
    vision: Half
    num_positions: int
    deepstack: tuple[int, int, int]
    dtype: str


_TOWER = Half(24, 1024, 4096, 16)
_MROPE = (24, 20, 20)
SHAPES = {
    Dims.small: Shape(
        Half(6, 384, 1152, 6), 2, 64, 768, True, (12, 10, 10), Half(6, 256, 1024, 4), 2304, (1, 2, 3),
        "float32",
    ),
    Dims.qwen3_vl_2b: Shape(
        Half(28, 2048, 6144, 16), 8, 128, 151936, True, _MROPE, _TOWER, 2304, (5, 11, 17), "bfloat16"
    ),
    Dims.qwen3_vl_4b: Shape(
        Half(36, 2560, 9728, 32), 8, 128, 151936, True, _MROPE, _TOWER, 2304, (5, 11, 17), "bfloat16"
    ),
    Dims.qwen3_vl_8b: Shape(
        Half(36, 4096, 12288, 32), 8, 128, 151936, False, _MROPE, Half(27, 1152, 4304, 16), 2304,
        (8, 16, 24), "bfloat16",
    ),
}  # fmt: skip
