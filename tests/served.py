"""A server in a thread of the test's own process, and the asks that clients send it."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from live_mlx_vlm import Encoded, encode_folder

from cache.base.home import Home
from cache.manifest import write_manifest
from infer.canary import Verdict, combination, remember
from seeonce.server.app import Server
from seeonce.server.connections import BoundedConnection
from seeonce.server.options import ServeOptions

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs, and a client of it."""

    server: Server
    client: httpx2.Client
    port: int

    def ask(self, content: object, **fields: object) -> httpx2.Response:
        """Ask about texts and pictures, greedily unless ``fields`` say otherwise."""
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "max_tokens": 12} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def text(self, content: object, **fields: object) -> str:
        """Return the answer's text."""
        found = self.ask(content, **fields)
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["message"]["content"])

    def streamed(self, content: object, **fields: object) -> list[Json]:
        """Return the chunks of an answer that is streamed."""
        lines = [line for line in self.ask(content, stream=True, **fields).text.splitlines() if line]
        assert lines[-1] == "data: [DONE]", lines[-1]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def metric(self, name: str) -> float:
        """Return what /metrics counts under a name."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"seeonce_{name}"))

    def wait_until_idle(self) -> None:
        """Wait until nothing is in flight."""
        until_s = time.monotonic() + 60
        while self.metric("in_flight") or self.metric("queue"):
            assert time.monotonic() < until_s
            time.sleep(0.01)


def prepared(checkpoint: Path, images: Path, home: Path) -> Encoded:
    """Encode a folder into a home whose engine is known to be sound."""
    encoded = encode_folder(checkpoint, images, home)
    write_manifest(Home(home), encoded.manifest)
    remember(Home(home), combination(), Verdict.batched)
    return encoded


@contextmanager
def served(home: Path, options: ServeOptions) -> Iterator[Served]:
    """Run a server on a port of its own."""
    server = Server(Home(home), options, lambda _: None)
    server.start()
    config = uvicorn.Config(
        server.app, "127.0.0.1", 0, http=BoundedConnection, ws="none", lifespan="off", log_config=None
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    port = int(web.servers[0].sockets[0].getsockname()[1])
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            yield Served(server, client, port)
    finally:
        web.should_exit = True
        thread.join()
        server.stop()


def image(url: str, **more: object) -> Json:
    """Return the part of a message that shows a picture."""
    return {"type": "image_url", "image_url": {"url": url} | more}


def text(words: str) -> Json:
    """Return the part of a message that is a text."""
    return {"type": "text", "text": words}


def data_url(data: bytes, kind: str = "image/png") -> str:
    """Return a picture as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
