"""Requests of a JSONL file in OpenAI's batch format, asked many at once; a second run asks only the rest."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2
from blake3 import blake3
from starlette.types import ASGIApp

from cache.base.canonical_json import canonical
from cache.base.errors import InputError
from cache.base.files import open_private
from seeonce.server.errors import refused

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MAX_REQUESTS = 50_000
_FIELDS = {"custom_id", "method", "url", "body"}
_CONTEXT = "seeonce 2026-11 batch request, format 1"

Json = dict[str, Any]


class BadLineError(InputError):
    """A line of the input is no request; nothing was asked."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line, self.problem = line, problem


@dataclass(slots=True)
class Batch:
    """The files of one batch, and how far it is; ``endpoint`` is that of all lines, if one is.

    ``known`` of the completed were answered by a run before.
    """

    input: Path
    output: Path
    errors: Path
    endpoint: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    known: int = 0

    async def run(
        self, app: ASGIApp, identity: Callable[[str | None], Awaitable[str]], num_at_once: int
    ) -> None:
        """Ask what has no answer in the output yet. What was written stays, however it ends.

        ``identity`` names what answers for a model: other weights give other answers. Errors are asked
        again by the next run.

        Raises:
            BadLineError: a line of the input is no request.
            OSError: a file cannot be read or written.
        """
        identities: dict[str | None, str] = {}
        wanted: dict[str, str] = {}
        for number, line in _lines(self.input):
            found = _request(number, line, self.endpoint)
            name = found["body"].get("model")
            if name not in identities:
                identities[name] = await identity(name)
            if found["custom_id"] in wanted:
                raise BadLineError(number, f"custom_id {found['custom_id']!r} is there twice.")
            if len(wanted) == MAX_REQUESTS:
                raise BadLineError(number, f"a batch has at most {MAX_REQUESTS:,} requests.")
            wanted[found["custom_id"]] = _digest(found, identities[name])
        if not wanted:
            raise BadLineError(1, "there is no request.")
        kept = _keep(self.output, wanted)
        self.total, self.completed, self.known, self.failed = len(wanted), len(kept), len(kept), 0
        rest = (
            (found, wanted[found["custom_id"]])
            for number, line in _lines(self.input)
            if (found := _request(number, line, self.endpoint))["custom_id"] not in kept
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        with open_private(self.output, "ab") as output, open_private(self.errors, "wb") as errors:
            client = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
            async with client, asyncio.TaskGroup() as group:
                for _ in range(num_at_once):
                    group.create_task(self._ask(rest, client, output, errors))

    async def _ask(
        self,
        rest: Iterator[tuple[Json, str]],
        client: httpx2.AsyncClient,
        output: IO[bytes],
        errors: IO[bytes],
    ) -> None:
        """Ask requests, each given with its digest, which is the id of its line."""
        for request, id_ in rest:
            status, body = await _reply(client, request["url"], request["body"])
            response = {"status_code": status, "request_id": id_, "body": body}
            line = {"id": id_, "custom_id": request["custom_id"], "response": response, "error": None}
            is_answer = status == 200
            file = output if is_answer else errors
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            self.completed += is_answer
            self.failed += not is_answer


async def _reply(client: httpx2.AsyncClient, url: str, asked: Json) -> tuple[int, Json]:
    if asked.get("stream"):
        error = refused("stream: a batch has whole answers: leave it out.", "stream")
        return error.status, error.body
    content = json.dumps(asked).encode()
    while True:
        found = await client.post(
            url, content=content, headers={"Content-Type": "application/json"}, timeout=None
        )
        if found.status_code != 503:
            return found.status_code, found.json()
        await asyncio.sleep(float(found.headers.get("retry-after", "1")))  # others are waited for


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _request(number: int, line: bytes, endpoint: str | None) -> Json:
    try:
        found = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadLineError(number, f"no JSON ({error}).") from error
    if not isinstance(found, dict) or not found.keys() <= _FIELDS or not isinstance(found.get("body"), dict):
        raise BadLineError(number, "expected an object of custom_id, method, url and body.")
    if not isinstance(found.get("custom_id"), str) or not found["custom_id"]:
        raise BadLineError(number, "custom_id: expected a text.")
    if found.get("method") != "POST":
        raise BadLineError(number, "method: expected POST.")
    url = found.get("url")
    if url not in ENDPOINTS or endpoint not in (None, url):
        raise BadLineError(number, f"url: expected {endpoint or ', '.join(ENDPOINTS)}.")
    model = found["body"].get("model")
    if model is not None and not isinstance(model, str):
        raise BadLineError(number, "body.model: expected a text.")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _digest(found: Json, identity: str) -> str:
    """Digest a request and what answers it: the same digest has the same answer."""
    document = canonical({"url": found["url"], "body": found["body"], "answers": identity})
    return "batch_req_" + blake3(document, derive_key_context=_CONTEXT).hexdigest(16)


def _keep(output: Path, wanted: dict[str, str]) -> set[str]:
    """Leave in the output what still answers a request; return the ids of those."""
    kept: set[str] = set()
    if not output.exists():
        return kept
    fresh = output.with_name(f".{output.name}.new")
    with open_private(fresh, "wb") as file:
        for _, line in _lines(output):
            with suppress(ValueError, RecursionError, TypeError, AttributeError):
                found = json.loads(line)
                name = found.get("custom_id")
                if name not in kept and name in wanted and found.get("id") == wanted[name]:
                    file.write(line.rstrip(b"\n") + b"\n")
                    kept.add(name)
    fresh.replace(output)
    return kept
