"""Another server beside ours: the same frames and questions to any OpenAI-compatible endpoint.

Owns what is said of that server: how fast it is, and how its answers compare with ours. Does not own
sending (``client``). A server may take one request at a time whatever is sent (Ollama does for this model
family): that is seen from its times, and said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.client import Endpoint, Reply, send_all
from bench.measure import Timing
from bench.right import Ask, num_about_another_frame
from bench.stage import Encoded, Warm
from bench.table import Cell, Found, Table
from bench.verdict import Outcome
from cache.errors import InputError
from demo.score import Expected, Result, is_true
from infer.limits import BatchLimits
from results.compare import Answers, Comparison, Said, compare

_LITTLE_GAIN = 1.2  # less gain than this from more requests in flight: one at a time
_NUM_SAMPLES = 8
_OURS = "seeonce, from the store"
_HEADER = (
    "in flight", "path", "seconds", "answers/s", "tokens/s", "answers", "failed", "tried again",
    "matching ours", "about another frame", "true",
)  # fmt: skip
_LATENCY_HEADER = ("in flight", "path", "fastest s", "median s", "p90 s", "p95 s", "slowest s")
_SAMPLE_HEADER = ("frame", "question", "likeness", "seeonce", "the server")


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked: every question about every frame of ``encoded``. ``truth`` where it is known."""

    encoded: Encoded
    texts: tuple[str, ...]
    max_tokens: int
    truth: Expected | None = None

    @property
    def asks(self) -> list[Ask]:
        """Every question about every frame, frame by frame."""
        frames = self.encoded.manifest.frames
        return [Ask(Path(frame.source), text) for frame in frames for text in self.texts]


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side answered at one level of concurrency, and in what time."""

    level: int
    name: str
    wall_s: float
    replies: list[Reply]

    @property
    def answered(self) -> list[int]:
        """The numbers of the requests that were answered."""
        return [number for number, reply in enumerate(self.replies) if reply.error is None]

    @property
    def texts(self) -> list[str]:
        """The text of each request, empty where there is none."""
        return [reply.text for reply in self.replies]


class Beside:
    """Our answers from the store and a server's, to the same questions at the same levels of concurrency."""

    def __init__(self, endpoint: Endpoint, questions: Questions, say: Callable[[str], None]) -> None:
        """Load our language half, and greet the server, which may have its model to load.

        Raises:
            InputError: the server does not answer at all.
        """
        self._endpoint, self._questions, self._say = endpoint, questions, say
        self._asks = questions.asks
        _greet(endpoint, self._asks[0], questions.max_tokens)
        self._warm = Warm(questions.encoded)
        self._requests = questions.encoded.requests(questions.texts, questions.max_tokens)
        self._warm.texts(self._requests[: len(questions.texts)], BatchLimits())

    def measure(self, levels: tuple[int, ...]) -> Found:
        """Answer everything at each level on both sides."""
        pairs = [(self._ours(level), self._theirs(level)) for level in levels]
        rows, latencies = [], []
        for ours, theirs in pairs:
            rows += [self._row(ours, ours), self._row(theirs, ours)]
            latencies += [_latency_row(ours), _latency_row(theirs)]
        num_frames = len(self._questions.encoded.manifest.frames)
        title = f"{self._endpoint.url}: {num_frames} frames, {len(self._questions.texts)} questions each"
        tables = (
            Table("endpoint", title, _HEADER, tuple(rows), self._remarks([theirs for _, theirs in pairs])),
            Table("endpoint_latency", "Latency of a request", _LATENCY_HEADER, tuple(latencies)),
            self._samples(*pairs[-1]),
        )
        return Found(tables, self._outcome(pairs))

    def _ours(self, level: int) -> _Side:
        started = time.perf_counter()
        timed = self._warm.answers(
            self._requests, BatchLimits(max_num_seqs=level), self._warm.tokenizer.stop_ids
        )
        texts = [self._warm.tokenizer.decode(tokens) for tokens in timed.tokens]
        wall_s = time.perf_counter() - started
        self._say(f"  {level} in flight: {_OURS}, {wall_s:.3g} s")
        replies = [
            Reply(text, latency_s, 1) for text, latency_s in zip(texts, timed.latencies.seconds, strict=True)
        ]
        return _Side(level, _OURS, wall_s, replies)

    def _theirs(self, level: int) -> _Side:
        started = time.perf_counter()
        replies = send_all(self._endpoint, self._asks, level, self._questions.max_tokens)
        wall_s = time.perf_counter() - started
        self._say(f"  {level} in flight: {self._endpoint.model}, {wall_s:.3g} s")
        return _Side(level, self._endpoint.model, wall_s, replies)

    def _row(self, side: _Side, ours: _Side) -> tuple[Cell, ...]:
        answered = side.answered
        num_tokens = sum(len(self._warm.tokenizer.text_ids(side.texts[number])) for number in answered)
        return (
            side.level, side.name, side.wall_s, len(answered) / side.wall_s, num_tokens / side.wall_s,
            len(side.replies), len(side.replies) - len(answered),
            sum(max(0, reply.num_tries - 1) for reply in side.replies),
            self._num_matching(side, ours), self._num_about_another(side, ours), self._num_true(side),
        )  # fmt: skip

    def _comparisons(self, side: _Side, ours: _Side) -> list[Comparison]:
        """Compare question by question, as ``seeonce compare`` compares two columns of answers."""
        answered = set(side.answered)
        return [
            compare(
                self._column(_OURS, question, ours.texts, answered),
                self._column(side.name, question, side.texts, answered),
            )
            for question in self._questions.texts
        ]

    def _column(self, name: str, question: str, texts: list[str], answered: set[int]) -> Answers:
        """Return one question's answers by frame; the place of an answer is its question and its request."""
        said = {
            (question, number): Said.of(texts[number])
            for number, ask in enumerate(self._asks)
            if ask.question == question and number in answered
        }
        return Answers(name, said)

    def _num_matching(self, side: _Side, ours: _Side) -> int:
        return sum(round(found.match_rate * found.num_frames) for found in self._comparisons(side, ours))

    def _num_about_another(self, side: _Side, ours: _Side) -> int:
        answered = set(side.answered)
        texts = [text if number in answered else ours.texts[number] for number, text in enumerate(side.texts)]
        return num_about_another_frame(self._asks, texts, ours.texts)

    def _num_true(self, side: _Side) -> int | None:
        truth = self._questions.truth
        if truth is None:
            return None
        return sum(
            bool(is_true(Result((ask.image.name,), ask.question, side.texts[number]), truth))
            for number, ask in enumerate(self._asks)
        )

    def _samples(self, ours: _Side, theirs: _Side) -> Table:
        """Show the answers that are least alike, of each question one before the next of the same."""
        changes = [found.changed_most for found in self._comparisons(theirs, ours)]
        ranked = [
            change for rank in range(_NUM_SAMPLES) for found in changes for change in found[rank : rank + 1]
        ]
        rows = tuple(
            (self._asks[one.frame].image.name, one.recording, one.similarity, one.left, one.right)
            for one in ranked[:_NUM_SAMPLES]
        )
        remarks = () if rows else ("Every answer is the same on both sides.",)
        title = f"Answers that differ most, {theirs.level} in flight"
        return Table("endpoint_samples", title, _SAMPLE_HEADER, rows, remarks)

    def _remarks(self, sides: list[_Side]) -> tuple[str, ...]:
        remarks = [
            "Tokens are counted by our tokenizer on both sides. Matching: as seeonce compare counts it, a "
            "likeness above 0.8. About another frame: what we say of exactly one other frame, and not what "
            "we say of its own."
        ]
        errors = {reply.error for side in sides for reply in side.replies if reply.error is not None}
        remarks += [f"Failed: {error}." for error in sorted(errors)[:_NUM_SAMPLES]]
        most = max(sides, key=lambda side: side.level)
        if most.level > sides[0].level and sides[0].wall_s < _LITTLE_GAIN * most.wall_s:
            remarks.append(
                f"{most.level} requests in flight gain less than {_LITTLE_GAIN - 1:.0%} over "
                f"{sides[0].level} there: the server takes them one at a time, or one keeps its machine busy."
            )
        return tuple(remarks)

    def _outcome(self, pairs: list[tuple[_Side, _Side]]) -> Outcome:
        """Judge at the level at which the server is fastest; answers at all levels."""
        ours, theirs = min(pairs, key=lambda pair: pair[1].wall_s)
        true = self._num_true(ours), self._num_true(theirs)
        return Outcome(
            work=f"{len(self._questions.texts)} questions a frame, {theirs.level} in flight",
            other=f"{self._endpoint.model} at {self._endpoint.url}",
            times_as_fast=theirs.wall_s / ours.wall_s,
            num_answers=sum(len(side.replies) for _, side in pairs),
            num_matching=sum(self._num_matching(theirs, ours) for ours, theirs in pairs),
            num_about_another_frame=sum(self._num_about_another(theirs, ours) for ours, theirs in pairs),
            num_failed=sum(len(side.replies) - len(side.answered) for _, side in pairs),
            num_true=None if true[0] is None or true[1] is None else (true[0], true[1]),
        )


def _greet(endpoint: Endpoint, ask: Ask, max_tokens: int) -> None:
    """Ask once before the clock runs: the server may still have to load its model."""
    (reply,) = send_all(endpoint, [ask], 1, max_tokens)
    if reply.error is not None:
        raise InputError(
            f"--endpoint {endpoint.url} does not answer as {endpoint.model} ({reply.error}): start the "
            "server, or check --endpoint and --endpoint-model."
        )


def _latency_row(side: _Side) -> tuple[Cell, ...]:
    latencies = Timing(tuple(side.replies[number].latency_s for number in side.answered))
    if not latencies.seconds:
        return side.level, side.name, None, None, None, None, None
    return (side.level, side.name, *(latencies.quantile_s(share) for share in (0.0, 0.5, 0.9, 0.95, 1.0)))
