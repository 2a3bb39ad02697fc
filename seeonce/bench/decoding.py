"""Workload 2: tokens a second by the number of sequences in flight, against mlx-vlm's own BatchGenerator.

Weights are loaded, frames encoded, and BatchGenerator's embeddings made before the clock runs; reading the
store is timed. Beside each level stands what the decoder alone would allow (``bare``).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from infer.limits import BatchLimits
from seeonce.bench.baseline import LiveModel
from seeonce.bench.judge import Judgement, ReferenceAnswer, judge_tokens
from seeonce.bench.measure import Clock, Measured, quantile
from seeonce.bench.passes import QUESTIONS, Encoded, PassTwo, Tokens
from seeonce.bench.report import Row, Table

_FEWEST_QUESTIONS = 4
_NEVER = frozenset[int]()  # no token ends an answer: all decode the same number
_FRAMES_OF_A_RECORDING = 182
_HEADER = (
    "in flight", "path", "tokens/s", "of BatchGenerator", "frames/s", "latency median s", "latency p95 s",
    "182 frames, s", "answers", "near-ties", "bare tokens/s", "share reached", "wrong",
)  # fmt: skip


Decoded = tuple[Tokens, list[float] | None]
"""The tokens of each request and its latency; BatchGenerator does not tell when it begins with one."""


def measure(encoded: Encoded, levels: tuple[int, ...], max_tokens: int, clock: Clock) -> list[Table]:
    """Decode the same requests both ways, so many in flight; unshared, as BatchGenerator does, and shared."""
    frames = encoded.manifest.frames
    num_questions = max(_FEWEST_QUESTIONS, -(-max(levels) // len(frames)))  # enough to fill every level
    questions = QUESTIONS[:num_questions]
    requests = encoded.requests(questions, max_tokens)
    live, pass_two = LiveModel(encoded.model), PassTwo(encoded)
    embedded = live.embedded(encoded.asks(questions))
    references = live.unbatched(embedded, max_tokens)

    def ours(limits: BatchLimits) -> Decoded:
        return pass_two.answers(requests, limits, _NEVER)

    def theirs(limits: BatchLimits) -> Decoded:
        return live.generated(embedded, max_tokens, limits), None

    rows: list[Row] = []
    for level in levels:
        limits = BatchLimits(max_num_seqs=level)
        bare = pass_two.bare(requests, limits)
        *found, prefill, steps = clock.alternate(
            {
                "mlx-vlm BatchGenerator": partial(theirs, limits),
                "seeonce, nothing shared": partial(ours, replace(limits, share_prefixes=False)),
                "seeonce": partial(ours, limits),
                "bare prefill": partial(_untold, bare.prefill),
                "bare steps": partial(_untold, bare.steps),
            }
        )
        dtype = encoded.model.spec.compute_dtype
        for each in found:
            bare_s = prefill.median_s + steps.median_s if each is found[-1] else None
            rows.append(_row(level, each, found[0], references, len(frames), dtype, bare_s))
    remark = (
        "Wrong: of all answers, those that are not BatchGenerator's own, one by one and unchunked, up to its "
        "near-ties. A latency runs from when a client with so many in flight would have sent the request to "
        "its last token. Bare is what the same prefills and full decode steps allow with nothing between: no "
        "rows that join or leave, no reading, nothing handed out."
    )
    title = (
        f"Decoding: {len(requests)} requests, {len(questions)} a frame, of {max_tokens} tokens, with prefill"
    )
    return [Table("decoding", title, _HEADER, tuple(rows), (remark,))]


def _untold(work: Callable[[], None]) -> Decoded:
    work()
    return [], None


def _row(
    level: int,
    each: Measured[Decoded],
    first: Measured[Decoded],
    references: list[ReferenceAnswer],
    num_frames: int,
    dtype: str,
    bare_s: float | None,
) -> Row:
    tokens, latencies = each.outcome
    num_tokens = sum(map(len, tokens))
    judged = [judge_tokens(mine, want, dtype) for mine, want in zip(tokens, references, strict=True)]
    return (
        level,
        each.name,
        num_tokens / each.median_s,
        first.median_s / each.median_s,
        num_frames / each.median_s,
        median(latencies) if latencies else None,
        quantile(latencies, 0.95) if latencies else None,
        each.median_s / num_frames * _FRAMES_OF_A_RECORDING,
        len(judged),
        judged.count(Judgement.near_tie),
        num_tokens / bare_s if bare_s else None,
        bare_s / each.median_s if bare_s else None,
        judged.count(Judgement.wrong),
    )
