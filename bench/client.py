"""Sending questions to an OpenAI-compatible server, and what came of each.

Owns HTTP: who is tried again, after how long, and when a server is given up. Does not own what the answers
are held against (``endpoint``).
"""

import base64
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2

from bench.right import Ask

_NUM_TRIES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_NUM_FAILURES = 8  # requests in a row: then the server is gone, and the others need not wait for it
_TOO_MANY, _SERVER_ERROR = 429, 500


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server and the model's name there; the key comes from OPENAI_API_KEY."""

    url: str
    model: str
    timeout_s: float = 300.0

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
    """Send all questions, so many at once; replies come in the order of the questions."""
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=num_in_flight)
    with (
        httpx2.Client(timeout=endpoint.timeout_s, headers=headers, limits=limits) as client,
        ThreadPoolExecutor(num_in_flight) as pool,
    ):
        sender = _Sender(client, endpoint, max_tokens)
        try:
            return list(pool.map(sender.send, asks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(slots=True)
class _Sender:
    """What the threads share: the connection, and how many requests in a row have failed."""

    client: httpx2.Client
    endpoint: Endpoint
    max_tokens: int
    _num_failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, ask: Ask) -> Reply:
        """Send one question, again if the server refuses for now; a time-out is not tried again."""
        if self._num_failures >= _NUM_FAILURES:
            return Reply("", 0.0, 0, f"not sent: {_NUM_FAILURES} requests in a row had failed")
        reply = self._tried(ask)
        with self._lock:
            self._num_failures = 0 if reply.error is None else self._num_failures + 1
        return reply

    def _tried(self, ask: Ask) -> Reply:
        body, started, error = _body(self.endpoint, ask, self.max_tokens), time.perf_counter(), ""
        num_tries = 0
        for wait_s in (*(_FIRST_WAIT_S * 2**number for number in range(_NUM_TRIES - 1)), None):
            num_tries += 1
            try:
                response = self.client.post(self.endpoint.chat_url, json=body)
                response.raise_for_status()
                return Reply(_text(response), time.perf_counter() - started, num_tries)
            except httpx2.TimeoutException:
                error = f"no answer within {self.endpoint.timeout_s:g} s"
                break
            except httpx2.HTTPStatusError as refusal:
                error = _words(refusal.response)
                if not _is_for_now(refusal.response) or wait_s is None:
                    break
                time.sleep(_asked_to_wait(refusal.response) or wait_s)
            except httpx2.HTTPError as failure:
                error = str(failure) or type(failure).__name__
                if wait_s is None:
                    break
                time.sleep(wait_s)
            except (ValueError, LookupError, TypeError):
                error = "its reply is no chat completion"
                break
        return Reply("", time.perf_counter() - started, num_tries, error)


def _body(endpoint: Endpoint, ask: Ask, max_tokens: int) -> dict[str, object]:
    picture = base64.b64encode(ask.image.read_bytes()).decode("ascii")
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": ask.question},
    ]
    message = {"role": "user", "content": content}
    return {"model": endpoint.model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}


def _text(response: httpx2.Response) -> str:
    content = response.json()["choices"][0]["message"]["content"]
    if not isinstance(content, str):
        raise TypeError(content)
    return content


def _is_for_now(refusal: httpx2.Response) -> bool:
    """Tell whether a refusal may pass: too many requests, or trouble at the server."""
    return refusal.status_code == _TOO_MANY or refusal.status_code >= _SERVER_ERROR


def _asked_to_wait(refusal: httpx2.Response) -> float:
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(refusal.headers.get("retry-after", "0"))))
    except ValueError:  # a date: our own waiting will do
        return 0.0


def _words(refusal: httpx2.Response) -> str:
    """Return the status and the beginning of what the server says of it."""
    said = " ".join(refusal.text.split())[:200]
    return f"HTTP {refusal.status_code}" + (f", {said}" if said else "")
