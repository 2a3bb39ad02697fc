"""The families that are supported, one module each: its configuration and its layers."""

from checkpoint.families import qwen3_5, qwen3_vl
from checkpoint.family import Family

FAMILIES: dict[str, Family] = {
    family.architecture: family for family in (*qwen3_vl.FAMILIES, *qwen3_5.FAMILIES)
}
