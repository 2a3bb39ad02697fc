"""Workload 1: several questions about each of several frames, live against stored.

Live costs K·(V + P + s + d) a frame, the store P + K·(s + d): V vision, P prefill of the image, s prefill of
the question, d decoding. What the store can save at most follows from that.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from PIL import Image

from cache.base.home import Home
from infer.limits import BatchLimits
from precompute.patches import cut_into_patches
from seeonce.bench.baseline import LiveModel
from seeonce.bench.judge import Judgement, judge_text, live_answers, matches, num_about_another_frame
from seeonce.bench.measure import Clock, Measured
from seeonce.bench.passes import QUESTIONS, Ask, Encoded, PassTwo, encode_frames
from seeonce.bench.report import Outcome, Row, Table

LIVE = "mlx-vlm live, one by one"
_ONE = BatchLimits(max_num_seqs=1, prefill_batch_size=1)
_UNSHARED = BatchLimits(max_num_seqs=1, prefill_batch_size=1, share_prefixes=False)
_HEADER = (
    "questions a frame", "path", "seconds", "spread", "times as fast as live", "answers", "near-ties",
    "wrong",
)  # fmt: skip


class PromptExperiment:
    """Encoded frames, live's answers about them, and both sides loaded once."""

    def __init__(
        self,
        encoded: Encoded,
        scratch: Path,
        nums_questions: tuple[int, ...],
        max_tokens: int,
        num_in_flight: int,
        clock: Clock,
    ) -> None:
        """Ask mlx-vlm live for the answers that are references, and load both sides."""
        self._encoded, self._nums_questions, self._clock = encoded, nums_questions, clock
        self._max_tokens, self._num_in_flight = max_tokens, num_in_flight
        self._references = live_answers(encoded, QUESTIONS[: max(nums_questions)], max_tokens)
        self._live, self._pass_two = LiveModel(encoded.model), PassTwo(encoded)
        self._homes = (Home(scratch / f"cold-{number}") for number in count())

    def measure(self) -> list[Table]:
        """Compare mlx-vlm live, one by one and batched, with ours cold and warm."""
        costs_s = self._costs_s(max(self._nums_questions))
        vision_s, image_s, question_s, decode_s = costs_s
        rows: list[Row] = []
        remarks = [
            f"One request at a time, a frame costs V {vision_s:.3f} s in the vision encoder, P "
            f"{image_s:.3f} s in the prefill of its image, s {question_s:.3f} s in that of a "
            f"question, d {decode_s:.3f} s in decoding."
        ]
        for num_questions in self._nums_questions:
            asks = self._encoded.asks(QUESTIONS[:num_questions])
            found = self._compare(asks, num_questions)
            live, alone, batched = found[0], found[-2], found[-1]
            for each in found:
                judged = self._judge(asks, each.outcome)
                rows.append(
                    (
                        num_questions, each.name, each.median_s, f"{each.spread:.0%}",
                        live.median_s / each.median_s, len(judged), judged.count(Judgement.near_tie),
                        judged.count(Judgement.wrong),
                    )
                )  # fmt: skip
            remarks.append(
                _arithmetic(
                    _allowed(num_questions, *costs_s), num_questions,
                    live.median_s / alone.median_s, live.median_s / batched.median_s,
                )
            )  # fmt: skip
        num_frames = len(self._encoded.manifest.frames)
        title = (
            f"Prompt experiment: {num_frames} frames, {self._max_tokens} tokens an answer, "
            f"{self._num_in_flight} in flight"
        )
        outcome = self._outcome(asks, num_questions, live, batched)
        return [Table("prompt_experiment", title, _HEADER, tuple(rows), tuple(remarks), outcome)]

    def _compare(self, asks: list[Ask], num_questions: int) -> list[Measured[list[str]]]:
        requests = self._encoded.requests(QUESTIONS[:num_questions], self._max_tokens)
        limits = BatchLimits(max_num_seqs=self._num_in_flight)
        live, warm = self._live, self._pass_two

        def cold() -> list[str]:
            encoded = encode_frames(self._encoded.model, self._encoded.images, next(self._homes))
            return PassTwo(encoded).texts(requests, limits)

        return self._clock.alternate(
            {
                LIVE: partial(live.one_by_one, asks, self._max_tokens),
                "mlx-vlm live, batch_generate": partial(
                    live.batched, asks, self._max_tokens, self._num_in_flight
                ),
                "seeonce cold (load, encode, load, describe)": cold,
                "seeonce warm, one in flight": partial(warm.texts, requests, _ONE),
                "seeonce warm": partial(warm.texts, requests, limits),
            }
        )

    def _judge(self, asks: list[Ask], texts: list[str]) -> list[Judgement]:
        dtype, decode = self._encoded.model.spec.compute_dtype, self._pass_two.tokenizer.decode
        return [
            judge_text(text, self._references[ask], dtype, decode)
            for text, ask in zip(texts, asks, strict=True)
        ]

    def _outcome(
        self, asks: list[Ask], num_questions: int, live: Measured[list[str]], warm: Measured[list[str]]
    ) -> Outcome:
        """Judge answers from the store: one that leaves live's at a near-tie counts as a match."""
        references = [self._pass_two.tokenizer.decode(self._references[ask].tokens) for ask in asks]
        judged = self._judge(asks, warm.outcome)
        num_matching = sum(
            matches(text, want) or judgement is Judgement.near_tie
            for text, want, judgement in zip(warm.outcome, references, judged, strict=True)
        )
        return Outcome(
            work=f"{num_questions} questions a frame",
            other=LIVE,
            times_as_fast=live.median_s / warm.median_s,
            num_answers=len(asks),
            num_matching=num_matching,
            num_about_another_frame=num_about_another_frame(asks, warm.outcome, references),
            num_failed=0,
            num_wrong=judged.count(Judgement.wrong),
        )

    def _costs_s(self, num: int) -> tuple[float, float, float, float]:
        """Measure V, P, s and d of the first frame, one request at a time: means over ``num`` questions.

        A question's own prefill is one without the image; what the first token takes beyond it is the
        image's.
        """
        questions, encoded, pass_two = QUESTIONS[:num], self._encoded, self._pass_two
        first = encoded.requests(questions, 1)[:num]
        whole = encoded.requests(questions, self._max_tokens)[:num]
        encoder = encoded.model.encoder()

        def vision() -> list[str]:
            with Image.open(encoded.manifest.frames[0].source) as picture:
                encoder.encode(cut_into_patches(picture.convert("RGB"), encoder.spec.preprocessing))
            return []

        ways: dict[str, Callable[[], list[str]]] = {
            "vision": vision,
            "questions": partial(pass_two.texts, encoded.bare_questions(questions), _UNSHARED),
            "first tokens": partial(pass_two.texts, first, _UNSHARED),
            "whole answers": partial(pass_two.texts, whole, _UNSHARED),
        }
        found = Clock(num_repetitions=3).alternate(ways)
        vision_s, question_s, first_s, whole_s = (measured.median_s for measured in found)
        return vision_s, (first_s - question_s) / num, question_s / num, max(0.0, (whole_s - first_s) / num)


def _allowed(k: int, vision_s: float, image_s: float, question_s: float, decode_s: float) -> float:
    """Return how many times as fast as live the store can be at most, one request at a time."""
    each_s = question_s + decode_s
    return k * (vision_s + image_s + each_s) / (image_s + k * each_s)


def _arithmetic(allowed: float, k: int, alone: float, batched: float) -> str:
    return (
        f"K = {k}: K·(V + P + s + d) / (P + K·(s + d)) allows {allowed:.2f} times; measured are "
        f"{alone:.2f} times one in flight, {alone / allowed:.0%} of it, and {batched:.2f} times in batches, "
        f"{batched / allowed:.0%}."
    )
