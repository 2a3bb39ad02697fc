"""Questions about pictures, sent to any OpenAI-compatible server, so many at once."""

import asyncio
import base64
import json
import os
import time
from dataclasses import dataclass

import httpx2

from cache.base.errors import InputError
from cache.base.text import visible
from seeonce.bench.passes import Ask

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
    turns = asyncio.Semaphore(num_in_flight)
    num_failures = 0  # in a row

    async with httpx2.AsyncClient(timeout=endpoint.timeout_s, headers=_headers(), limits=limits) as client:

        async def send(ask: Ask) -> Reply:
            nonlocal num_failures
            async with turns:
                if num_failures >= _NUM_FAILURES:
                    return Reply("", 0.0, 0, f"not sent: {_NUM_FAILURES} requests in a row had failed")
                reply = await _reply(client, endpoint, _body(endpoint, ask, max_tokens))
                num_failures = 0 if reply.error is None else num_failures + 1
                return reply

        return await asyncio.gather(*map(send, asks))


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():  # an error on the way would show it
        raise InputError("OPENAI_API_KEY has characters that no key has: set it again, or unset it.")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _reply(client: httpx2.AsyncClient, endpoint: Endpoint, body: dict[str, object]) -> Reply:
    """Send one request until it is answered or fails for good; a time-out is not tried again."""
    started, num_tries = time.perf_counter(), 0
    while True:
        num_tries += 1
        wait_s: float | None = _FIRST_WAIT_S * 2 ** (num_tries - 1)
        try:
            async with asyncio.timeout(endpoint.timeout_s):  # httpx's own starts again at each byte
                response, content = await _post(client, endpoint.chat_url, body)
            if response.is_success:
                return Reply(_text(content), time.perf_counter() - started, num_tries)
            error = _words(response, content)
            is_for_now = response.status_code == _TOO_MANY or response.status_code >= _SERVER_ERROR
            wait_s = _asked_to_wait(response) or wait_s if is_for_now else None
        except (TimeoutError, httpx2.TimeoutException):
            error, wait_s = f"no answer within {endpoint.timeout_s:g} s", None
        except (_NoAnswerError, *_NO_ADDRESS) as failure:
            error, wait_s = str(failure), None
        except httpx2.HTTPError as failure:
            error = str(failure) or type(failure).__name__
        if wait_s is None or num_tries == _NUM_TRIES:
            return Reply("", time.perf_counter() - started, num_tries, visible(error))
        await asyncio.sleep(wait_s)


async def _post(
    client: httpx2.AsyncClient, url: str, body: dict[str, object]
) -> tuple[httpx2.Response, bytes]:
    content = bytearray()
    async with client.stream("POST", url, json=body) as response:
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


def _asked_to_wait(refusal: httpx2.Response) -> float:
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(refusal.headers.get("retry-after", "0"))))
    except ValueError:  # a date: our own waiting will do
        return 0.0


def _words(refusal: httpx2.Response, content: bytes) -> str:
    """Return the status and the beginning of what the server says of it."""
    said = " ".join(content.decode("utf-8", "replace").split())[:_SHOWN]
    return f"HTTP {refusal.status_code}" + (f", {said}" if said else "")
