"""Another server beside ours: the same frames and questions to any OpenAI-compatible endpoint.

Owns sending, retrying and timing requests, and what is said of the server. A server may take one request at
a time whatever is sent (Ollama does for this model family): that is seen from its times, and said.
"""

import base64
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2

from bench.stage import Encoded, Warm
from bench.table import Cell, Table
from cache.errors import InputError
from demo.score import Expected, Result, is_true
from infer.limits import BatchLimits

_NUM_TRIES = 2
_TIMEOUT_S = 300.0
_SERIAL_BELOW = 1.2  # less gain than this from more requests in flight: one at a time
_HEADER = (
    "in flight", "path", "seconds", "answers/s", "latency median s", "latency p95 s",
    "answers", "failed", "unlike ours", "about another frame", "true",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server and the model's name there; the key comes from OPENAI_API_KEY."""

    url: str
    model: str

    @property
    def chat_url(self) -> str:
        """Where chat completions are asked for; the user may give the root or ``…/v1``."""
        root = self.url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
        return f"{root}/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's end: its text and latency in seconds, or what went wrong after so many tries."""

    text: str
    latency_s: float
    num_tries: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One question about one picture."""

    image: Path
    question: str


def measure(
    endpoint: Endpoint,
    encoded: Encoded,
    questions: tuple[str, ...],
    levels: tuple[int, ...],
    max_tokens: int,
    truth: Expected | None,
) -> Table:
    """Send every question about every frame at each level of concurrency; answer the same from the store.

    Raises:
        InputError: the server does not answer at all.
    """
    asks = [Ask(Path(frame.source), question) for frame in encoded.manifest.frames for question in questions]
    _greet(endpoint, asks[0], max_tokens)
    warm, requests = Warm(encoded), encoded.requests(questions, max_tokens)
    warm.texts(requests[: len(questions)], BatchLimits())
    rows: list[tuple[Cell, ...]] = []
    walls: dict[int, float] = {}
    for level in levels:
        started = time.perf_counter()
        ours = warm.texts(requests, BatchLimits(max_num_seqs=level))
        wall_s = time.perf_counter() - started
        mine = [Reply(text, 0.0, 1) for text in ours]
        rows.append(_row(level, "seeonce, from the store", wall_s, mine, asks, ours, truth))
        started = time.perf_counter()
        theirs = send_all(endpoint, asks, level, max_tokens)
        walls[level] = time.perf_counter() - started
        rows.append(_row(level, endpoint.model, walls[level], theirs, asks, ours, truth))
    title = f"{endpoint.url}: {len(encoded.manifest.frames)} frames, {len(questions)} questions each"
    return Table("endpoint", title, _HEADER, tuple(rows), _remarks(walls))


def send_all(endpoint: Endpoint, asks: list[Ask], num_in_flight: int, max_tokens: int) -> list[Reply]:
    """Send all questions, so many at once; replies come in the order of the questions."""
    with (
        httpx2.Client(timeout=_TIMEOUT_S, headers=_headers()) as client,
        ThreadPoolExecutor(num_in_flight) as pool,
    ):
        return list(pool.map(partial(_send, client, endpoint, max_tokens=max_tokens), asks))


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _greet(endpoint: Endpoint, ask: Ask, max_tokens: int) -> None:
    """Ask once before the clock runs: the server may still have to load its model."""
    (reply,) = send_all(endpoint, [ask], 1, max_tokens)
    if reply.error is not None:
        raise InputError(
            f"--endpoint {endpoint.url} does not answer as {endpoint.model} ({reply.error}): start the "
            "server, or check --endpoint and --endpoint-model."
        )


def _send(client: httpx2.Client, endpoint: Endpoint, ask: Ask, *, max_tokens: int) -> Reply:
    """Send one question; a refusal or a time-out is tried once more, and counted either way."""
    started, error = time.perf_counter(), ""
    for num_tries in range(1, _NUM_TRIES + 1):
        try:
            response = client.post(endpoint.chat_url, json=_body(endpoint, ask, max_tokens))
            response.raise_for_status()
            text = response.json()["choices"][0]["message"]["content"]
            return Reply(text or "", time.perf_counter() - started, num_tries)
        except httpx2.HTTPError as failure:
            error = str(failure) or type(failure).__name__
        except (ValueError, LookupError, TypeError):
            error = "its reply is no chat completion"
    return Reply("", time.perf_counter() - started, _NUM_TRIES, error)


def _body(endpoint: Endpoint, ask: Ask, max_tokens: int) -> dict[str, object]:
    picture = base64.b64encode(ask.image.read_bytes()).decode("ascii")
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": ask.question},
    ]
    message = {"role": "user", "content": content}
    return {
        "model": endpoint.model, "messages": [message], "max_tokens": max_tokens, "temperature": 0,
    }  # fmt: skip


def _row(
    level: int, path: str, wall_s: float, replies: list[Reply], asks: list[Ask], ours: list[str],
    truth: Expected | None,
) -> tuple[Cell, ...]:  # fmt: skip
    answered = [number for number, reply in enumerate(replies) if reply.error is None]
    latencies = sorted(replies[number].latency_s for number in answered if replies[number].latency_s)
    unlike = [number for number in answered if replies[number].text.strip() != ours[number].strip()]
    true = None if truth is None else sum(_is_true(asks[n], replies[n], truth) for n in answered)
    return (
        level, path, wall_s, len(answered) / wall_s,
        statistics.median(latencies) if latencies else None,
        latencies[int(0.95 * (len(latencies) - 1))] if latencies else None,
        len(replies), len(replies) - len(answered), len(unlike),
        sum(_of_another_frame(number, replies, asks, ours) for number in unlike), true,
    )  # fmt: skip


def _of_another_frame(number: int, replies: list[Reply], asks: list[Ask], ours: list[str]) -> bool:
    """Say whether a reply is what the same question about another frame is answered with."""
    said = replies[number].text.strip()
    return any(
        said == other.strip()
        for ask, other in zip(asks, ours, strict=True)
        if ask.question == asks[number].question and ask.image != asks[number].image
    )


def _is_true(ask: Ask, reply: Reply, truth: Expected) -> bool:
    return bool(is_true(Result((ask.image.name,), ask.question, reply.text), truth))


def _remarks(walls: dict[int, float]) -> tuple[str, ...]:
    first = min(walls)
    slow = [level for level in walls if level > first and walls[first] < _SERIAL_BELOW * walls[level]]
    if not slow:
        return ()
    return (
        f"More requests at once gain less than {_SERIAL_BELOW - 1:.0%} there ({max(slow)} in flight): "
        "it seems to take them one at a time.",
    )
