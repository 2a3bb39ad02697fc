"""Where the time of each pass goes, function by function, as Python's own profiler sees it."""

import cProfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType

from cache.base.home import Home
from infer.limits import BatchLimits
from seeonce.bench.passes import QUESTIONS, Model, PassTwo, encode_frames
from seeonce.bench.report import Row, Table

_NUM_SHOWN = 12
_HEADER = ("pass", "function", "calls", "seconds of its own", "share")


def measure(model: Model, images: Path, scratch: Path, max_tokens: int) -> list[Table]:
    """Profile both passes over the same frames, the model loaded before."""
    encoder = model.encoder()
    home = Home(scratch / "profile-home")
    encoded = encode_frames(model, images, Home(scratch / "profile-warm-up"), encoder)
    pass_two, requests = PassTwo(encoded), encoded.requests(QUESTIONS, max_tokens)
    pass_two.texts(requests[:1], BatchLimits())
    rows = [
        *_rows("one", lambda: encode_frames(model, images, home, encoder)),
        *_rows("two", lambda: pass_two.texts(requests, BatchLimits())),
    ]
    remark = "Only the calling thread is seen; MLX computes where its results are waited for."
    return [Table("profile", "Where the time goes", _HEADER, tuple(rows), (remark,))]


def _rows(name: str, work: Callable[[], object]) -> list[Row]:
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
