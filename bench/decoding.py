"""Workload 2: tokens a second by the number of sequences in flight, against mlx-vlm's own BatchGenerator.

Weights are loaded, frames encoded, and BatchGenerator's embeddings made before the clock runs; reading the
store is timed.
"""

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.measure import Contestant, Measured, alternate
from bench.peers import StockBatches
from bench.stage import QUESTIONS, Encoded, Timed, Tokens, Warm
from bench.table import Cell, Table
from infer.limits import BatchLimits

_NUM_QUESTIONS = 4
_NEVER = frozenset[int]()  # no token ends an answer: all decode the same number
_FRAMES_OF_A_RECORDING = 182
_HEADER = (
    "in flight", "path", "tokens/s", "of BatchGenerator", "frames/s", "latency median s", "latency p95 s",
    "182 frames, s", "answers", "wrong",
)  # fmt: skip


def measure(encoded: Encoded, levels: tuple[int, ...], max_tokens: int, num_repetitions: int) -> Table:
    """Decode the same requests both ways, so many in flight; unshared, as BatchGenerator does, and shared."""
    questions = QUESTIONS[:_NUM_QUESTIONS]
    frames = encoded.manifest.frames
    requests = encoded.requests(questions, max_tokens)
    stock, warm = StockBatches(encoded.model), Warm(encoded)
    embedded = stock.rows([(Path(frame.source), text) for frame in frames for text in questions])
    right = stock.answers(embedded, max_tokens, BatchLimits(1, 1, 2**30))
    rows: list[tuple[Cell, ...]] = []
    for level in levels:
        limits = BatchLimits(max_num_seqs=level)

        def batches(limits: BatchLimits = limits) -> Timed:
            return Timed(stock.answers(embedded, max_tokens, limits), [])

        found = alternate(
            [
                Contestant("mlx-vlm BatchGenerator", batches),
                Contestant(
                    "seeonce, nothing shared",
                    partial(warm.answers, requests, replace(limits, share_prefixes=False), _NEVER),
                ),
                Contestant("seeonce", partial(warm.answers, requests, limits, _NEVER)),
            ],
            num_repetitions,
        )
        rows += [_row(level, each, found[0], right, len(frames)) for each in found]
    remark = (
        "Wrong: of all answers, those that are not BatchGenerator's own, one by one and unchunked. A latency "
        "runs from when the engine takes the request."
    )
    title = f"Decoding: {len(requests)} requests of {max_tokens} tokens, prefill included"
    return Table("decoding", title, _HEADER, tuple(rows), (remark,))


def _row(
    level: int, each: Measured[Timed], first: Measured[Timed], right: Tokens, num_frames: int
) -> tuple[Cell, ...]:
    tokens, seconds = each.outcome.tokens, each.timing.median_s
    latencies = sorted(each.outcome.latencies_s)
    return (
        level,
        each.name,
        sum(map(len, tokens)) / seconds,
        first.timing.median_s / seconds,
        num_frames / seconds,
        statistics.median(latencies) if latencies else None,
        latencies[int(0.95 * (len(latencies) - 1))] if latencies else None,
        seconds / num_frames * _FRAMES_OF_A_RECORDING,
        len(tokens),
        sum(mine != theirs for mine, theirs in zip(tokens, right, strict=True)),
    )
