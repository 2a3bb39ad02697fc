"""Where the time of each pass goes, function by function, as Python's own profiler sees it."""

import cProfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType

from cache.base.home import Home
from infer.limits import BatchLimits
from seeonce.bench.report import Cell, Found, Table
from seeonce.bench.stage import QUESTIONS, Model, Warm, encode_frames

_NUM_SHOWN = 12
_HEADER = ("pass", "function", "calls", "seconds of its own", "share")


def measure(model: Model, images: Path, scratch: Path, max_tokens: int) -> Found:
    """Profile pass one and pass two over the same frames, their halves of the model loaded before."""
    encoder = model.encoder()
    home = Home(scratch / "profile-home")
    encoded = encode_frames(model, images, Home(scratch / "profile-warm-up"), encoder)
    warm, requests = Warm(encoded), encoded.requests(QUESTIONS, max_tokens)
    warm.texts(requests[:1], BatchLimits())
    rows = [
        *_rows("one", lambda: encode_frames(model, images, home, encoder)),
        *_rows("two", lambda: warm.texts(requests, BatchLimits())),
    ]
    remark = "Only the calling thread is seen; MLX computes where its results are waited for."
    return Found((Table("profile", "Where the time goes", _HEADER, tuple(rows), (remark,)),))


def _rows(name: str, work: Callable[[], object]) -> list[tuple[Cell, ...]]:
    profile = cProfile.Profile()
    profile.runcall(work)
    found = sorted(profile.getstats(), key=lambda entry: entry.inlinetime, reverse=True)
    total_s = sum(entry.inlinetime for entry in found)
    return [
        (name, _where(entry.code), entry.callcount, entry.inlinetime, f"{entry.inlinetime / total_s:.0%}")
        for entry in found[:_NUM_SHOWN]
    ]


def _where(code: CodeType | str) -> str:
    """Name a function by file, line and name; one that is built in has a name alone."""
    if isinstance(code, str):
        return code
    return f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_qualname}"
