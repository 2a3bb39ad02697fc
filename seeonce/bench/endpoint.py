"""Another server compared with ours: the same frames and questions to any OpenAI-compatible endpoint.

A server may take one request at a time whatever is sent (Ollama does for this model family): the report says
so where its times show it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest

from cache.base.errors import InputError
from cache.base.text import visible
from infer.limits import BatchLimits
from seeonce.bench.client import Endpoint, Reply, send_all
from seeonce.bench.judge import num_about_another_frame
from seeonce.bench.measure import quantile
from seeonce.bench.passes import Ask, Encoded, PassTwo
from seeonce.bench.report import Outcome, Row, Table
from seeonce.runs.compare import MATCH_ABOVE, Said, likeness, normalised
from seeonce.runs.score import Truths

_LITTLE_GAIN = 1.2  # less gain than this from more requests in flight: one at a time
_NUM_SAMPLES = 8
_LONGEST_SHOWN = 500  # characters
_OURS = "seeonce, from the store"
_HEADER = (
    "in flight", "path", "seconds", "answers/s", "tokens/s", "answers", "failed", "tried again",
    "matching ours", "about another frame", "true",
)  # fmt: skip
_LATENCY_HEADER = ("in flight", "path", "fastest s", "median s", "p90 s", "p95 s", "slowest s")
_SAMPLE_HEADER = ("frame", "question", "likeness", "seeonce", "the server")


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side answered at one number of requests in flight, in what time, and how it compares.

    ``matching`` and ``about_another`` count answers that match ours and that are about another frame;
    ``true`` those that are true, where that is known.
    """

    level: int
    name: str
    wall_s: float
    replies: list[Reply]
    matching: int = 0
    about_another: int = 0
    true: int | None = None

    @property
    def answered(self) -> list[int]:
        """The numbers of the requests that were answered."""
        return [number for number, reply in enumerate(self.replies) if reply.error is None]

    @property
    def num_failed(self) -> int:
        """How many were not answered."""
        return len(self.replies) - len(self.answered)

    @property
    def was_given_up(self) -> bool:
        """Whether some were not even sent, so many before them had failed."""
        return any(reply.num_tries == 0 for reply in self.replies)

    @property
    def texts(self) -> list[str]:
        """The text of each request, empty where the answer has no text."""
        return [reply.text for reply in self.replies]


class ServerComparison:
    """Our answers from the store and a server's, to the same questions, so many requests in flight."""

    def __init__(
        self,
        endpoint: Endpoint,
        encoded: Encoded,
        questions: tuple[str, ...],
        max_tokens: int,
        truth: Truths | None,
        say: Callable[[str], None],
    ) -> None:
        """Load our language model, and ask the server once: it may have its own model to load.

        Every question is asked about every frame; ``truth`` is given where it is known.

        Raises:
            InputError: the server does not answer at all.
        """
        self._endpoint, self._encoded, self._questions = endpoint, encoded, questions
        self._max_tokens, self._truth, self._say = max_tokens, truth, say
        self._asks = encoded.asks(questions)
        _require_answer(endpoint, self._asks[0], max_tokens)
        self._pass_two = PassTwo(encoded)
        self._requests = encoded.requests(questions, max_tokens)
        self._pass_two.texts(self._requests[: len(questions)], BatchLimits())

    def measure(
        self, levels: tuple[int, ...], keep: Callable[[list[Table]], None] = lambda _: None
    ) -> list[Table]:
        """Answer everything on both sides, so many in flight; ``keep`` is given what is known after each.

        After a level at which the server was given up there is no other.
        """
        pairs: list[tuple[_Side, _Side]] = []
        for level in levels:
            ours, theirs = self._ours(level), self._theirs(level)
            pairs.append((self._compared(ours, ours), self._compared(theirs, ours)))
            keep(self._tables(pairs))
            if theirs.was_given_up:
                break
        return self._tables(pairs)

    def _tables(self, pairs: list[tuple[_Side, _Side]]) -> list[Table]:
        sides = [side for pair in pairs for side in pair]
        num_frames = len(self._encoded.manifest.frames)
        title = f"{self._endpoint.shown}: {num_frames} frames, {len(self._questions)} questions each"
        rows, latencies = tuple(map(self._row, sides)), tuple(map(_latency_row, sides))
        return [
            Table("endpoint", title, _HEADER, rows, self._remarks(pairs), self._outcome(pairs)),
            Table("endpoint_latency", "Latency of a request", _LATENCY_HEADER, latencies),
            self._samples(*pairs[-1]),
        ]

    def _ours(self, level: int) -> _Side:
        started, tokenizer = time.perf_counter(), self._pass_two.tokenizer
        answered, latencies = self._pass_two.answers(
            self._requests, BatchLimits(max_num_seqs=level), tokenizer.stop_ids
        )
        texts = [tokenizer.decode(tokens) for tokens in answered]
        wall_s = time.perf_counter() - started
        self._say(f"  {level} in flight: {_OURS}, {wall_s:.3g} s")
        replies = [Reply(text, latency_s, 1) for text, latency_s in zip(texts, latencies, strict=True)]
        return _Side(level, _OURS, wall_s, replies)

    def _theirs(self, level: int) -> _Side:
        started = time.perf_counter()
        replies = send_all(self._endpoint, self._asks, level, self._max_tokens)
        wall_s = time.perf_counter() - started
        self._say(f"  {level} in flight: {self._endpoint.model}, {wall_s:.3g} s")
        return _Side(level, self._endpoint.model, wall_s, replies)

    def _compared(self, side: _Side, ours: _Side) -> _Side:
        """Return a side with its counts; comparing texts takes a while."""
        answered = set(side.answered)
        texts = [text if number in answered else ours.texts[number] for number, text in enumerate(side.texts)]
        return replace(
            side,
            matching=sum(ratio > MATCH_ABOVE for ratio in self._likenesses(side, ours).values()),
            about_another=num_about_another_frame(self._asks, texts, ours.texts),
            true=self._num_true(side),
        )

    def _row(self, side: _Side) -> Row:
        answered = side.answered
        num_tokens = sum(len(self._pass_two.tokenizer.text_ids(side.texts[number])) for number in answered)
        return (
            side.level, side.name, side.wall_s, len(answered) / side.wall_s, num_tokens / side.wall_s,
            len(side.replies), side.num_failed,
            sum(max(0, reply.num_tries - 1) for reply in side.replies),
            side.matching, side.about_another, side.true,
        )  # fmt: skip

    def _likenesses(self, side: _Side, ours: _Side) -> dict[int, float]:
        """Return how alike the answers of both sides are, by the number of a request that was answered."""
        return {at: likeness(Said.of(ours.texts[at]), Said.of(side.texts[at])) for at in side.answered}

    def _num_true(self, side: _Side) -> int | None:
        if self._truth is None:
            return None
        known = [self._truth.get((None, ask.image.name, ask.question)) for ask in self._asks]
        return sum(
            one is not None and normalised(text) == normalised(one.text or "")
            for text, one in zip(side.texts, known, strict=True)
        )

    def _samples(self, ours: _Side, theirs: _Side) -> Table:
        """Show the answers that are least alike, of each question one before the next of the same."""
        likenesses = self._likenesses(theirs, ours)
        parted = sorted((at for at, ratio in likenesses.items() if ratio < 1), key=likenesses.__getitem__)
        of_each = [
            [at for at in parted if self._asks[at].question == question][:_NUM_SAMPLES]
            for question in self._questions
        ]
        ranked = [at for one_of_each in zip_longest(*of_each) for at in one_of_each if at is not None]
        rows: tuple[Row, ...] = tuple(
            (
                self._asks[at].image.name, self._asks[at].question, likenesses[at],
                _shown(ours.texts[at]), _shown(theirs.texts[at]),
            )
            for at in ranked[:_NUM_SAMPLES]
        )  # fmt: skip
        same = "Every answer is the same on both sides." if theirs.answered else "The server gave no answer."
        remarks = () if rows else (same,)
        title = f"Answers that differ most, {theirs.level} in flight"
        return Table("endpoint_samples", title, _SAMPLE_HEADER, rows, remarks)

    def _remarks(self, pairs: list[tuple[_Side, _Side]]) -> tuple[str, ...]:
        encode_s = self._encoded.took_s
        with_it = (f"{theirs.wall_s / (ours.wall_s + encode_s):.2f}" for ours, theirs in pairs)
        sides = [theirs for _, theirs in pairs]
        remarks = [
            f"Our seconds are from the store: pass one over these frames took {encode_s:.3g} s before, once. "
            f"With it counted each time, seeonce is {', '.join(with_it)} times as fast as the server.",
            "Tokens are counted by our tokenizer on both sides. Matching: as seeonce compare counts it, a "
            "likeness above 0.8. About another frame: what we say of exactly one other frame, and not what "
            "we say of its own.",
        ]
        errors = {reply.error for side in sides for reply in side.replies if reply.error is not None}
        remarks += [f"Failed: {error}." for error in sorted(errors)[:_NUM_SAMPLES]]
        if sides[-1].was_given_up:
            remarks.append(f"Given up at {sides[-1].level} in flight: no higher level was asked.")
        most = max(sides, key=lambda side: side.level)
        if most.level > sides[0].level and _is_little_gain(sides[0], most):
            remarks.append(
                f"{most.level} requests in flight gain less than {_LITTLE_GAIN - 1:.0%} over "
                f"{sides[0].level} there: the server takes them one at a time, or one keeps its machine busy."
            )
        return tuple(remarks)

    def _outcome(self, pairs: list[tuple[_Side, _Side]]) -> Outcome:
        """Judge where the server is fastest, and fails least; its answers at all levels."""
        ours, theirs = min(pairs, key=lambda pair: (pair[1].num_failed, pair[1].wall_s))
        true = sum(one.true or 0 for one, _ in pairs), sum(other.true or 0 for _, other in pairs)
        return Outcome(
            work=f"{len(self._questions)} questions a frame, {theirs.level} in flight",
            other=f"{self._endpoint.model} at {self._endpoint.shown}",
            times_as_fast=theirs.wall_s / ours.wall_s,
            num_answers=sum(len(other.replies) for _, other in pairs),
            num_matching=sum(other.matching for _, other in pairs),
            num_about_another_frame=sum(other.about_another for _, other in pairs),
            num_failed=sum(other.num_failed for _, other in pairs),
            num_true=None if self._truth is None else true,
        )


def _is_little_gain(one: _Side, most: _Side) -> bool:
    """Tell whether more in flight gain little; times with failures in them tell nothing."""
    return one.wall_s < _LITTLE_GAIN * most.wall_s and not one.num_failed and not most.num_failed


def _shown(text: str) -> str:
    """Return the beginning of a text that a server may have made as long and as odd as it likes."""
    return visible(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _require_answer(endpoint: Endpoint, ask: Ask, max_tokens: int) -> None:
    """Ask once before the clock runs: the server may still have to load its model."""
    (reply,) = send_all(endpoint, [ask], 1, max_tokens)
    if reply.error is not None:
        raise InputError(
            f"--endpoint {endpoint.shown} does not answer as {endpoint.model} ({reply.error}): start the "
            "server, or check --endpoint and --endpoint-model."
        )


def _latency_row(side: _Side) -> Row:
    latencies = [side.replies[number].latency_s for number in side.answered]
    shares = (0.0, 0.5, 0.9, 0.95, 1.0)
    return side.level, side.name, *(quantile(latencies, share) if latencies else None for share in shares)
