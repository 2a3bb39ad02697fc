"""Another server beside ours: the same frames and questions to any OpenAI-compatible endpoint.

Owns what is said of that server: how fast it is, and how its answers compare with ours. Does not own
sending (``client``). A server may take one request at a time whatever is sent (Ollama does for this model
family): that is seen from its times, and said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.errors import InputError
from infer.limits import BatchLimits
from seeonce.bench.client import Endpoint, Reply, send_all
from seeonce.bench.measure import Timing
from seeonce.bench.right import Ask, num_about_another_frame
from seeonce.bench.stage import Encoded, Warm
from seeonce.bench.table import Cell, Found, Table
from seeonce.bench.verdict import Outcome
from seeonce.demo.score import Expected, Result, is_true
from seeonce.runs.compare import Answers, Comparison, Said, compare
from seeonce.runs.visible import visible

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
    def num_failed(self) -> int:
        """How many were not answered."""
        return sum(reply.error is not None for reply in self.replies)

    @property
    def was_given_up(self) -> bool:
        """Whether some were not even sent, so many before them had failed."""
        return any(reply.num_tries == 0 for reply in self.replies)

    @property
    def texts(self) -> list[str]:
        """The text of each request, empty where there is none."""
        return [reply.text for reply in self.replies]


@dataclass(frozen=True, slots=True)
class _Counts:
    """How many answers of a side match ours, are about another frame, and are true, where that is known."""

    matching: int
    about_another: int
    true: int | None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both sides at one level, and what is counted of either: once, for comparing texts takes a while."""

    ours: _Side
    theirs: _Side
    of_ours: _Counts
    of_theirs: _Counts


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

    def measure(self, levels: tuple[int, ...], keep: Callable[[Found], None] = lambda _: None) -> Found:
        """Answer everything at each level on both sides; ``keep`` is given what is known after each.

        After a level at which the server was given up there is no other.
        """
        pairs: list[_Pair] = []
        for level in levels:
            if pairs and pairs[-1].theirs.was_given_up:
                break
            pairs.append(self._pair(level))
            keep(self._found(pairs))
        return self._found(pairs)

    def _found(self, pairs: list[_Pair]) -> Found:
        rows, latencies = [], []
        for pair in pairs:
            rows += [self._row(pair.ours, pair.of_ours), self._row(pair.theirs, pair.of_theirs)]
            latencies += [_latency_row(pair.ours), _latency_row(pair.theirs)]
        num_frames = len(self._questions.encoded.manifest.frames)
        title = f"{self._endpoint.shown}: {num_frames} frames, {len(self._questions.texts)} questions each"
        tables = (
            Table("endpoint", title, _HEADER, tuple(rows), self._remarks(pairs)),
            Table("endpoint_latency", "Latency of a request", _LATENCY_HEADER, tuple(latencies)),
            self._samples(pairs[-1].ours, pairs[-1].theirs),
        )
        return Found(tables, self._outcome(pairs))

    def _pair(self, level: int) -> _Pair:
        ours, theirs = self._ours(level), self._theirs(level)
        return _Pair(ours, theirs, self._counts(ours, ours), self._counts(theirs, ours))

    def _counts(self, side: _Side, ours: _Side) -> _Counts:
        return _Counts(
            self._num_matching(side, ours), self._num_about_another(side, ours), self._num_true(side)
        )

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

    def _row(self, side: _Side, counts: _Counts) -> tuple[Cell, ...]:
        answered = side.answered
        num_tokens = sum(len(self._warm.tokenizer.text_ids(side.texts[number])) for number in answered)
        return (
            side.level, side.name, side.wall_s, len(answered) / side.wall_s, num_tokens / side.wall_s,
            len(side.replies), side.num_failed,
            sum(max(0, reply.num_tries - 1) for reply in side.replies),
            counts.matching, counts.about_another, counts.true,
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
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                self._asks[one.frame].image.name, one.recording, one.similarity,
                _shown(one.left), _shown(one.right),
            )
            for one in ranked[:_NUM_SAMPLES]
        )  # fmt: skip
        same = "Every answer is the same on both sides." if theirs.answered else "The server gave no answer."
        remarks = () if rows else (same,)
        title = f"Answers that differ most, {theirs.level} in flight"
        return Table("endpoint_samples", title, _SAMPLE_HEADER, rows, remarks)

    def _remarks(self, pairs: list[_Pair]) -> tuple[str, ...]:
        encode_s = self._questions.encoded.took_s
        with_it = (f"{pair.theirs.wall_s / (pair.ours.wall_s + encode_s):.2f}" for pair in pairs)
        sides = [pair.theirs for pair in pairs]
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

    def _outcome(self, pairs: list[_Pair]) -> Outcome:
        """Judge at the level at which the server is fastest, and fails least; answers at all levels."""
        best = min(pairs, key=lambda pair: (pair.theirs.num_failed, pair.theirs.wall_s))
        true = sum(pair.of_ours.true or 0 for pair in pairs), sum(pair.of_theirs.true or 0 for pair in pairs)
        return Outcome(
            work=f"{len(self._questions.texts)} questions a frame, {best.theirs.level} in flight",
            other=f"{self._endpoint.model} at {self._endpoint.shown}",
            times_as_fast=best.theirs.wall_s / best.ours.wall_s,
            num_answers=sum(len(pair.theirs.replies) for pair in pairs),
            num_matching=sum(pair.of_theirs.matching for pair in pairs),
            num_about_another_frame=sum(pair.of_theirs.about_another for pair in pairs),
            num_failed=sum(pair.theirs.num_failed for pair in pairs),
            num_true=None if self._questions.truth is None else true,
        )


def _is_little_gain(one: _Side, most: _Side) -> bool:
    """Tell whether more in flight gain little; times with failures in them tell nothing."""
    return one.wall_s < _LITTLE_GAIN * most.wall_s and not one.num_failed and not most.num_failed


def _shown(text: str) -> str:
    """Return the beginning of a text that a server may have made as long and as odd as it likes."""
    return visible(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _greet(endpoint: Endpoint, ask: Ask, max_tokens: int) -> None:
    """Ask once before the clock runs: the server may still have to load its model."""
    (reply,) = send_all(endpoint, [ask], 1, max_tokens)
    if reply.error is not None:
        raise InputError(
            f"--endpoint {endpoint.shown} does not answer as {endpoint.model} ({reply.error}): start the "
            "server, or check --endpoint and --endpoint-model."
        )


def _latency_row(side: _Side) -> tuple[Cell, ...]:
    latencies = Timing(tuple(side.replies[number].latency_s for number in side.answered))
    if not latencies.seconds:
        return side.level, side.name, None, None, None, None, None
    return (side.level, side.name, *(latencies.quantile_s(share) for share in (0.0, 0.5, 0.9, 0.95, 1.0)))
