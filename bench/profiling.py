"""Where the time of each pass goes, function by function, as Python's own profiler sees it."""

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

from bench.stage import QUESTIONS, Model, Warm, encode_frames
from bench.table import Cell, Found, Table
from cache.home import Home
from infer.limits import BatchLimits

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
    found = pstats.Stats(profile).get_stats_profile()
    heaviest = sorted(found.func_profiles.items(), key=lambda item: item[1].tottime, reverse=True)
    return [
        (
            name,
            f"{Path(line.file_name).name}:{line.line_number} {function}",
            str(line.ncalls),
            line.tottime,
            f"{line.tottime / found.total_tt:.0%}",
        )
        for function, line in heaviest[:_NUM_SHOWN]
    ]
