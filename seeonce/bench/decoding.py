"""Workload 2: tokens a second by the number of sequences in flight, against mlx-vlm's own BatchGenerator.

Weights are loaded, frames encoded, and BatchGenerator's embeddings made before the clock runs; reading the
store is timed.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infer.limits import BatchLimits
from seeonce.bench.measure import Clock, Contestant, Measured, Timing
from seeonce.bench.peers import StockBatches
from seeonce.bench.report import Cell, Found, Table
from seeonce.bench.right import Ask, Judgement, Right, judge_tokens
from seeonce.bench.stage import QUESTIONS, Encoded, Tokens, Warm

_NUM_QUESTIONS = 4
_NEVER = frozenset[int]()  # no token ends an answer: all decode the same number
_FRAMES_OF_A_RECORDING = 182
_HEADER = (
    "in flight", "path", "tokens/s", "of BatchGenerator", "frames/s", "latency median s", "latency p95 s",
    "182 frames, s", "answers", "near-ties", "wrong",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What a contestant decoded; BatchGenerator does not tell when it begins with a request."""

    tokens: Tokens
    latencies: Timing | None = None


def measure(encoded: Encoded, levels: tuple[int, ...], max_tokens: int, clock: Clock) -> Found:
    """Decode the same requests both ways, so many in flight; unshared, as BatchGenerator does, and shared."""
    questions = QUESTIONS[:_NUM_QUESTIONS]
    frames = encoded.manifest.frames
    requests = encoded.requests(questions, max_tokens)
    stock, warm = StockBatches(encoded.model), Warm(encoded)
    embedded = stock.rows([Ask(Path(frame.source), text) for frame in frames for text in questions])
    right = stock.right(embedded, max_tokens)

    def ours(limits: BatchLimits) -> _Decoded:
        timed = warm.answers(requests, limits, _NEVER)
        return _Decoded(timed.tokens, timed.latencies)

    def theirs(limits: BatchLimits) -> _Decoded:
        return _Decoded(stock.answers(embedded, max_tokens, limits))

    rows: list[tuple[Cell, ...]] = []
    for level in levels:
        limits = BatchLimits(max_num_seqs=level)
        found = clock.alternate(
            [
                Contestant("mlx-vlm BatchGenerator", partial(theirs, limits)),
                Contestant("seeonce, nothing shared", partial(ours, replace(limits, share_prefixes=False))),
                Contestant("seeonce", partial(ours, limits)),
            ]
        )
        dtype = encoded.model.spec.compute_dtype
        rows += [_row(level, each, found[0], right, len(frames), dtype) for each in found]
    remark = (
        "Wrong: of all answers, those that are not BatchGenerator's own, one by one and unchunked, up to its "
        "near-ties. A latency runs from when a client with so many in flight would have sent the request to "
        "its last token."
    )
    title = (
        f"Decoding: {len(requests)} requests, {_NUM_QUESTIONS} a frame, of {max_tokens} tokens, with prefill"
    )
    return Found((Table("decoding", title, _HEADER, tuple(rows), (remark,)),))


def _row(
    level: int,
    each: Measured[_Decoded],
    first: Measured[_Decoded],
    right: list[Right],
    num_frames: int,
    dtype: str,
) -> tuple[Cell, ...]:
    tokens, seconds = each.outcome.tokens, each.timing.median_s
    latencies = each.outcome.latencies
    judged = [judge_tokens(mine, want, dtype) for mine, want in zip(tokens, right, strict=True)]
    return (
        level,
        each.name,
        sum(map(len, tokens)) / seconds,
        first.timing.median_s / seconds,
        num_frames / seconds,
        latencies.median_s if latencies else None,
        latencies.quantile_s(0.95) if latencies else None,
        seconds / num_frames * _FRAMES_OF_A_RECORDING,
        len(judged),
        judged.count(Judgement.near_tie),
        judged.count(Judgement.wrong),
    )
