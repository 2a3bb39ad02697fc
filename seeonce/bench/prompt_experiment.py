"""Workload 1: several questions about each of several frames, live against stored.

Owns the comparison, and the arithmetic of what storing can save at most: live costs K·(V + P + s + d) a
frame, warm P + K·(s + d), with V vision, P prefill of the image, s prefill of the question, d decoding.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from PIL import Image

from cache.base.home import Home
from infer.limits import BatchLimits
from precompute.encoder import VisionEncoder
from seeonce.bench.measure import Clock, Contestant, Measured
from seeonce.bench.peers import LiveModel
from seeonce.bench.report import Cell, Found, Outcome, Table
from seeonce.bench.right import (
    Ask,
    Judgement,
    Right,
    judge_text,
    matches,
    num_about_another_frame,
    right_answers,
)
from seeonce.bench.stage import QUESTIONS, Encoded, Warm, encode_frames

LIVE = "mlx-vlm live, one by one"
_ONE = BatchLimits(max_num_seqs=1, prefill_batch_size=1)
_UNSHARED = BatchLimits(max_num_seqs=1, prefill_batch_size=1, share_prefixes=False)
_HEADER = (
    "questions a frame", "path", "seconds", "spread", "times as fast as live", "answers", "near-ties",
    "wrong",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked: questions a frame, tokens an answer, requests in flight."""

    num_questions: tuple[int, ...]
    max_tokens: int
    num_in_flight: int


@dataclass(frozen=True, slots=True)
class _Shares:
    """Seconds that one frame costs, one request at a time."""

    vision_s: float
    image_s: float
    question_s: float
    decode_s: float

    def allowed(self, num_questions: int) -> float:
        """Return how many times as fast as live the store can be at most, one request at a time."""
        each_s = self.question_s + self.decode_s
        return (
            num_questions * (self.vision_s + self.image_s + each_s) / (self.image_s + num_questions * each_s)
        )


class PromptExperiment:
    """Encoded frames, the right answers about them, and what gives answers, loaded once."""

    def __init__(self, encoded: Encoded, scratch: Path, sizes: Sizes, clock: Clock) -> None:
        """Ask mlx-vlm live for the right answers, and load both sides."""
        self._encoded, self._sizes, self._clock = encoded, sizes, clock
        self._right = right_answers(encoded, QUESTIONS[: max(sizes.num_questions)], sizes.max_tokens)
        self._live, self._warm = LiveModel(encoded.model), Warm(encoded)
        self._homes = (Home(scratch / f"cold-{number}") for number in count())

    def measure(self) -> Found:
        """Compare mlx-vlm live, one by one and batched, with ours cold and warm."""
        shares = self._shares()
        rows: list[tuple[Cell, ...]] = []
        remarks = [
            f"One request at a time, a frame costs V {shares.vision_s:.3f} s in the vision encoder, P "
            f"{shares.image_s:.3f} s in the prefill of its image, s {shares.question_s:.3f} s in that of a "
            f"question, d {shares.decode_s:.3f} s in decoding."
        ]
        for num_questions in self._sizes.num_questions:
            asks = [
                Ask(Path(frame.source), question)
                for frame in self._encoded.manifest.frames
                for question in QUESTIONS[:num_questions]
            ]
            found = self._compare(asks, num_questions)
            rows += [self._row(num_questions, each, found[0], asks) for each in found]
            remarks.append(
                _arithmetic(shares, num_questions, *(found[n].timing.median_s for n in (0, -2, -1)))
            )
        num_frames = len(self._encoded.manifest.frames)
        title = (
            f"Prompt experiment: {num_frames} frames, {self._sizes.max_tokens} tokens an answer, "
            f"{self._sizes.num_in_flight} in flight"
        )
        table = Table("prompt_experiment", title, _HEADER, tuple(rows), tuple(remarks))
        return Found((table,), self._outcome(asks, found[0], found[-1]))

    def _compare(self, asks: list[Ask], num_questions: int) -> list[Measured[list[str]]]:
        sizes = self._sizes
        requests = self._encoded.requests(QUESTIONS[:num_questions], sizes.max_tokens)
        limits = BatchLimits(max_num_seqs=sizes.num_in_flight)

        def cold() -> list[str]:
            again = encode_frames(self._encoded.model, self._encoded.images, next(self._homes))
            return Warm(again).texts(requests, limits)

        return self._clock.alternate(
            [
                Contestant(LIVE, partial(self._live.one_by_one, asks, sizes.max_tokens)),
                Contestant(
                    "mlx-vlm live, batch_generate",
                    partial(self._live.batched, asks, sizes.max_tokens, sizes.num_in_flight),
                ),
                Contestant("seeonce cold (load, encode, load, describe)", cold),
                Contestant("seeonce warm, one in flight", partial(self._warm.texts, requests, _ONE)),
                Contestant("seeonce warm", partial(self._warm.texts, requests, limits)),
            ]
        )

    def _row(
        self, num_questions: int, each: Measured[list[str]], live: Measured[list[str]], asks: list[Ask]
    ) -> tuple[Cell, ...]:
        judged = [self._judge(text, self._right[ask]) for text, ask in zip(each.outcome, asks, strict=True)]
        return (
            num_questions,
            each.name,
            each.timing.median_s,
            f"{each.timing.spread:.0%}",
            live.timing.median_s / each.timing.median_s,
            len(judged),
            judged.count(Judgement.near_tie),
            judged.count(Judgement.wrong),
        )

    def _judge(self, text: str, right: Right) -> Judgement:
        dtype = self._encoded.model.spec.compute_dtype
        return judge_text(text, right, dtype, self._warm.tokenizer.decode)

    def _outcome(self, asks: list[Ask], live: Measured[list[str]], warm: Measured[list[str]]) -> Outcome:
        """Judge the warm path: an answer that parts from live by a near-tie counts as a match."""
        right = [self._warm.tokenizer.decode(self._right[ask].tokens) for ask in asks]
        judged = [self._judge(text, self._right[ask]) for text, ask in zip(warm.outcome, asks, strict=True)]
        num_matching = sum(
            matches(text, want) or judgement is Judgement.near_tie
            for text, want, judgement in zip(warm.outcome, right, judged, strict=True)
        )
        return Outcome(
            work=f"{self._sizes.num_questions[-1]} questions a frame",
            other=LIVE,
            times_as_fast=live.timing.median_s / warm.timing.median_s,
            num_answers=len(asks),
            num_matching=num_matching,
            num_about_another_frame=num_about_another_frame(asks, warm.outcome, right),
            num_failed=0,
            num_wrong=judged.count(Judgement.wrong),
        )

    def _shares(self) -> _Shares:
        """Measure the shares of the first frame, one request at a time: means over the questions.

        A question's own prefill is one without the image; what the first token takes beyond it is the
        image's.
        """
        questions = QUESTIONS[: max(self._sizes.num_questions)]
        num, encoded, warm = len(questions), self._encoded, self._warm
        first = encoded.requests(questions, 1)[:num]
        whole = encoded.requests(questions, self._sizes.max_tokens)[:num]
        encoder = encoded.model.encoder()
        found = Clock(num_repetitions=3).alternate(
            [
                Contestant("vision", partial(_encode_first, encoded, encoder)),
                Contestant("questions", partial(warm.texts, encoded.bare_questions(questions), _UNSHARED)),
                Contestant("first tokens", partial(warm.texts, first, _UNSHARED)),
                Contestant("whole answers", partial(warm.texts, whole, _UNSHARED)),
            ]
        )
        vision_s, question_s, first_s, whole_s = (measured.timing.median_s for measured in found)
        return _Shares(
            vision_s, (first_s - question_s) / num, question_s / num, max(0.0, (whole_s - first_s) / num)
        )


def _arithmetic(shares: _Shares, num_questions: int, live_s: float, alone_s: float, batched_s: float) -> str:
    allowed, alone, batched = shares.allowed(num_questions), live_s / alone_s, live_s / batched_s
    return (
        f"K = {num_questions}: K·(V + P + s + d) / (P + K·(s + d)) allows {allowed:.2f} times; measured are "
        f"{alone:.2f} times one in flight, {alone / allowed:.0%} of it, and {batched:.2f} times in batches, "
        f"{batched / allowed:.0%}."
    )


def _encode_first(encoded: Encoded, encoder: VisionEncoder) -> list[str]:
    with Image.open(encoded.manifest.frames[0].source) as picture:
        encoder.encode(encoder.preprocess(picture.convert("RGB")))
    return []
