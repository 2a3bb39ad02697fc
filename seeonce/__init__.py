"""See each frame of a screen recording once, ask about it as often as you like.

from seeonce import EncodeOptions, ask, encode

encode(EncodeOptions("demo"))
table = ask("demo", "Which applications are open?")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from seeonce.packages import shadowed

if TYPE_CHECKING:
    from cache.base.errors import SeeonceError
    from cache.base.home import Home
    from infer.sampling import Sampling
    from precompute.options import EncodeOptions
    from precompute.pipeline import EncodeResult
    from seeonce.api import ask, describe, encode, entries, verify
    from seeonce.runs.describe import DescribeResult
    from seeonce.runs.notebook import AnswerTable
    from seeonce.runs.options import DescribeOptions
    from seeonce.runs.prompts import ImagePosition, Prompt, Showing
    from seeonce.verifier.levels import VerifyOptions
    from seeonce.verifier.report import Level, Report

__all__ = [
    "AnswerTable",
    "DescribeOptions",
    "DescribeResult",
    "EncodeOptions",
    "EncodeResult",
    "Home",
    "ImagePosition",
    "Level",
    "Prompt",
    "Report",
    "Sampling",
    "SeeonceError",
    "Showing",
    "VerifyOptions",
    "ask",
    "describe",
    "encode",
    "entries",
    "verify",
]

if not shadowed():
    from checkpoint.blas import put_openblas_in_front

    put_openblas_in_front()  # MLX, which is imported after this, then multiplies with it


def __getattr__(name: str) -> object:
    """Import a name when it is first used. Raises ``ImportError`` where a stranger's module is in the way."""
    if name not in __all__:
        raise AttributeError(f"module 'seeonce' has no attribute {name!r}")
    if problem := shadowed():
        raise ImportError(problem)
    value = globals()[name] = getattr(import_module("seeonce.api"), name)
    return value
