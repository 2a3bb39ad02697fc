"""Another server beside ours: the same frames and questions to any OpenAI-compatible endpoint.

Owns what is said of that server: how fast it is, and how its answers compare with ours. Does not own
sending (``client``). A server may take one request at a time whatever is sent (Ollama does for this model
family): that is seen from its times, and said.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cache.base.errors import InputError
from cache.base.text import visible
from infer.limits import BatchLimits
from seeonce.bench.measure import Timing
from seeonce.bench.report import Cell, Found, Outcome, Table
from seeonce.bench.right import Ask, num_about_another_frame
from seeonce.bench.stage import Encoded, Warm
from seeonce.demo.score import Expected, Result, is_true
from seeonce.runs.compare import Answers, Comparison, Said, compare

_NUM_TRIES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_NUM_FAILURES = 8  # requests in a row: then the server is gone, and the others need not wait for it
_TOO_MANY, _SERVER_ERROR = 429, 500
_MAX_REPLY_BYTES = 1_000_000
_MAX_CHARACTERS = 10_000  # many times what 64 tokens hold; a longer text takes minutes to compare
_NO_ADDRESS = (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError)
_SHOWN = 200  # characters of what a server says of a failure


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server and the model's name there; the key comes from OPENAI_API_KEY."""

    url: str
    model: str
    timeout_s: float = 300.0

    @property
    def shown(self) -> str:
        """The address for a report, without a password."""
        scheme, separator, rest = self.url.rpartition("://")
        host, slash, path = rest.partition("/")
        return visible(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}")

    @property
    def chat_url(self) -> str:
        """Where chat completions are asked for; the user may give the root or ``…/v1``."""
        root = self.url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
        return f"{root}/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's end: its text, or what went wrong; its latency in seconds, and how often it was sent.

    The latency is that of the whole request, waiting and further tries included.
    """

    text: str
    latency_s: float
    num_tries: int
    error: str | None = None


def send_all(endpoint: Endpoint, asks: list[Ask], num_in_flight: int, max_tokens: int) -> list[Reply]:
    """Send all questions, so many at once; replies come in the order of the questions.

    Ctrl-C ends it at once, whatever the server is at.

    Raises:
        InputError: OPENAI_API_KEY is no key.
    """
    return asyncio.run(_send_all(endpoint, asks, num_in_flight, max_tokens))


async def _send_all(endpoint: Endpoint, asks: list[Ask], num_in_flight: int, max_tokens: int) -> list[Reply]:
    limits = httpx2.Limits(max_connections=num_in_flight)
    async with httpx2.AsyncClient(timeout=endpoint.timeout_s, headers=_headers(), limits=limits) as client:
        sender = _Sender(client, endpoint, max_tokens, asyncio.Semaphore(num_in_flight))
        return await asyncio.gather(*map(sender.send, asks))


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():  # an error on the way would show it
        raise InputError("OPENAI_API_KEY has characters that no key has: set it again, or unset it.")
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(slots=True)
class _Sender:
    """What the requests share: the connections, whose turn it is, and how many in a row have failed."""

    client: httpx2.AsyncClient
    endpoint: Endpoint
    max_tokens: int
    turns: asyncio.Semaphore
    _num_failures: int = 0

    async def send(self, ask: Ask) -> Reply:
        """Send one question when it is its turn; a time-out is not tried again."""
        async with self.turns:
            if self._num_failures >= _NUM_FAILURES:
                return Reply("", 0.0, 0, f"not sent: {_NUM_FAILURES} requests in a row had failed")
            reply = await self._tried(ask)
            self._num_failures = 0 if reply.error is None else self._num_failures + 1
            return reply

    async def _tried(self, ask: Ask) -> Reply:
        body, started, error = _body(self.endpoint, ask, self.max_tokens), time.perf_counter(), ""
        num_tries = 0
        for wait_s in (*(_FIRST_WAIT_S * 2**number for number in range(_NUM_TRIES - 1)), None):
            num_tries += 1
            try:
                async with asyncio.timeout(self.endpoint.timeout_s):  # httpx's own begins anew at each byte
                    response, content = await self._post(body)
                if response.is_success:
                    return Reply(_text(content), time.perf_counter() - started, num_tries)
                error = _words(response, content)
                if not _is_for_now(response) or wait_s is None:
                    break
                await asyncio.sleep(_asked_to_wait(response) or wait_s)
            except (TimeoutError, httpx2.TimeoutException):
                error = f"no answer within {self.endpoint.timeout_s:g} s"
                break
            except _NoAnswerError as failure:
                error = str(failure)
                break
            except _NO_ADDRESS as failure:
                error = str(failure)
                break
            except httpx2.HTTPError as failure:
                error = str(failure) or type(failure).__name__
                if wait_s is None:
                    break
                await asyncio.sleep(wait_s)
        return Reply("", time.perf_counter() - started, num_tries, visible(error))

    async def _post(self, body: dict[str, object]) -> tuple[httpx2.Response, bytes]:
        content = bytearray()
        async with self.client.stream("POST", self.endpoint.chat_url, json=body) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _MAX_REPLY_BYTES:
                    raise _NoAnswerError(f"its reply has more than {_MAX_REPLY_BYTES:,} bytes")
        return response, bytes(content)


class _NoAnswerError(Exception):
    """A reply that is there and no answer: asking again would bring the same."""


def _body(endpoint: Endpoint, ask: Ask, max_tokens: int) -> dict[str, object]:
    picture = base64.b64encode(ask.image.read_bytes()).decode("ascii")
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": ask.question},
    ]
    message = {"role": "user", "content": content}
    return {"model": endpoint.model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}


def _text(reply: bytes) -> str:
    """Return the text of a chat completion, which may come in parts; ``?`` stands for what is no Unicode."""
    try:
        document = json.loads(reply)
    except (ValueError, RecursionError):
        raise _NoAnswerError("its reply is no chat completion") from None
    try:
        content = document["choices"][0]["message"]["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    except (LookupError, TypeError):
        said = document.get("error") if isinstance(document, dict) else None
        words = f": {json.dumps(said, ensure_ascii=False)[:_SHOWN]}" if said else ""
        raise _NoAnswerError(f"its reply is no chat completion{words}") from None
    if len(text) > _MAX_CHARACTERS:
        raise _NoAnswerError(f"its text has more than {_MAX_CHARACTERS:,} characters, whatever was asked for")
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_for_now(refusal: httpx2.Response) -> bool:
    """Tell whether a refusal may pass: too many requests, or trouble at the server."""
    return refusal.status_code == _TOO_MANY or refusal.status_code >= _SERVER_ERROR


def _asked_to_wait(refusal: httpx2.Response) -> float:
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(refusal.headers.get("retry-after", "0"))))
    except ValueError:  # a date: our own waiting will do
        return 0.0


def _words(refusal: httpx2.Response, content: bytes) -> str:
    """Return the status and the beginning of what the server says of it."""
    said = " ".join(content.decode("utf-8", "replace").split())[:_SHOWN]
    return f"HTTP {refusal.status_code}" + (f", {said}" if said else "")


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
