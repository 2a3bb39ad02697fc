"""Workload 3: one frame at the sizes of vLLM-MLX's published table, live against stored.

It takes the sizes in order and stops when the next would not end within what is left of its time.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from cache.base.home import Home
from infer.engine import Engine
from infer.features import StoredFeatures
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.request import Answer
from infer.sequence import sampling_hooks
from seeonce.bench.baseline import LiveModel
from seeonce.bench.measure import Clock
from seeonce.bench.passes import QUESTIONS, Model, Tokens, draw_frames, encode_frames
from seeonce.bench.report import Row, Table
from seeonce.verifier.differences import LOGPROB

SIZES = (
    (224, 224), (336, 336), (448, 448), (512, 512), (672, 672),
    (768, 768), (896, 896), (1024, 1024), (1280, 720), (1920, 1080),
)  # fmt: skip
_LIMITS = BatchLimits(max_num_seqs=1, prefill_batch_size=1)
_NUM_LOGPROBS = 8
_HEADER = ("size", "tokens", "live s", "stored s", "times as fast", "entry MB", "load ms", "first token")


def measure(model: Model, scratch: Path, budget_s: float, clock: Clock) -> list[Table]:
    """Measure seconds to the first token of one question, live and from the store, per size."""
    live = LiveModel(model)
    engine = Engine.load(model.checkpoint, model.spec.compute_dtype)
    sizes = sorted(SIZES, key=lambda size: size[0] * size[1])
    rows: list[Row] = []
    ends_at, last_s = time.perf_counter() + budget_s, 0.0
    for before, size in zip((sizes[0], *sizes), sizes, strict=False):
        started = time.perf_counter()
        growth = (size[0] * size[1] / (before[0] * before[1])) ** 2  # at most, that of attention
        if rows and started + last_s * growth > ends_at:
            break
        rows.append(_row(model, live, engine, size, scratch, clock))
        last_s = time.perf_counter() - started
    left_out = [f"{width}x{height}" for width, height in sizes[len(rows) :]]
    remarks = [
        "Seconds from the picture, or from its entry, to the first token of one question. Right: the "
        f"{_NUM_LOGPROBS} likeliest first tokens are as likely as live, up to rounding."
    ]
    if left_out:
        remarks.append(f"Left out, for they would not end in time here: {', '.join(left_out)}.")
    title = "Resolution: one frame, one question"
    return [Table("resolution", title, _HEADER, tuple(rows), tuple(remarks))]


def _row(
    model: Model, live: LiveModel, engine: Engine, size: tuple[int, int], scratch: Path, clock: Clock
) -> Row:
    name = f"{size[0]}x{size[1]}"
    images = draw_frames(scratch / name, 1, size)
    encoded = encode_frames(model, images, Home(scratch / f"{name}-home"))
    requests = encoded.requests(QUESTIONS[:1], max_tokens=1)
    frame = encoded.manifest.frames[0]
    source = StoredFeatures(encoded.store, encoded.manifest.recording.id)

    def stored() -> Tokens:
        answers = engine.answer(requests, source, _LIMITS, hooks_of=sampling_hooks, stop_ids=frozenset())
        return [answer.tokens for _, answer in answers]

    logprobs: list[Any] = []

    def encoding() -> Tokens:
        token, of_all = live.first_token(encoded.asks(QUESTIONS[:1])[0])
        logprobs[:] = [of_all]
        return [(token,)]

    def load() -> Tokens:
        encoded.store.read(frame.key)
        return []

    found = clock.alternate({f"{name} live": encoding, "stored": stored, "load": load})
    live_s, stored_s, load_s = (each.median_s for each in found)
    hooks = RowHooks(top_logprobs=_NUM_LOGPROBS)
    ((_, answer),) = engine.answer(requests, source, _LIMITS, hooks_of=lambda _: hooks, stop_ids=frozenset())
    is_right = found[1].outcome[0] == answer.tokens and _is_right(
        answer, logprobs[0], LOGPROB[model.spec.compute_dtype]
    )
    info = encoded.store.peek(frame.key)
    num_bytes = 0 if info is None else info.nbytes
    return (
        name, frame.num_tokens, live_s, stored_s, live_s / stored_s, num_bytes / 1e6, load_s * 1e3,
        "right" if is_right else "wrong",
    )  # fmt: skip


def _is_right(answer: Answer, logprobs: Any, tolerance: float) -> bool:
    """Tell whether the likeliest first tokens are as likely as live, in log-probabilities ``(vocab,)``.

    One token alone tells little: most faults leave the likeliest one as it is.
    """
    import mlx.core as mx

    live = np.array(logprobs.astype(mx.float32)).reshape(-1)
    (first,) = answer.logprobs or ()
    return all(abs(live[one.token] - one.logprob) <= tolerance for one in first.top)
