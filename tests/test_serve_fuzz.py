"""Whatever clients send, a server answers with the API's errors, keeps no memory of it, and lives on."""

import gc
import json
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from live_mlx_vlm import draw_noise
from served import Served, image, prepared, served, text

from infer.limits import BatchLimits
from seeonce.server.options import ServeOptions

NUM_IN_SUITE = 30
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, "", "x", "\u0000", "é" * 50, [], [[]], {}, {"a": {}}, [None], 2**70
)  # fmt: skip
WORDS = (
    "model", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n",
    "stream", "stream_options", "logprobs", "top_logprobs", "response_format", "seeonce", "tools", "user",
    "logit_bias", "chat_template_kwargs", "repetition_penalty", "prompt", "unheard_of",
)  # fmt: skip
URLS = (
    "", "data:", "data:image/png;base64,", "data:image/png;base64,AAAA", "data:text/plain,hello", "seeonce:",
    "seeonce:/0", "seeonce:a/b", "seeonce:../../x/0", "file:///etc/passwd", "file:", "http://127.0.0.1/",
    "https://", "javascript:0", "data:image/png;base64," + "A" * 10000, "seeonce:\u0000/1",
)  # fmt: skip


@pytest.fixture(scope="module")
def api(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    prepared(plain, draw_noise(tmp_path_factory.mktemp("images"), 1), home)
    with served(home, ServeOptions(str(plain), BatchLimits(4, 2, 64))) as found:
        yield found


def _body(draw: random.Random) -> bytes:
    """Return a request with something wrong in it, as a rule."""
    content: Any = draw.choice(
        ["Hello", [text("Hello")], [image(draw.choice(URLS)), text("?")], draw.choice(WRONG)]
    )
    messages: Any = [{"role": draw.choice(["user", "system", "assistant", "tool", 5]), "content": content}]
    body: dict[str, Any] = {"messages": messages, "max_tokens": 2}
    for _ in range(draw.randint(0, 3)):
        body[draw.choice(WORDS)] = draw.choice(WRONG)
    raw = json.dumps(body).encode()
    for _ in range(draw.choice([0, 0, 0, 1, 4])):  # bytes that are cut out, doubled or changed
        at = draw.randrange(len(raw))
        raw = (
            raw[:at]
            + draw.choice([b"", raw[at : at + 9] * 2, draw.randbytes(3)])
            + raw[at + draw.randint(0, 9) :]
        )
        raw = raw or b" "
    return raw


def _send(api: Served, draw: random.Random) -> None:
    path = draw.choice(["/v1/chat/completions", "/v1/chat/completions", "/v1/completions"])
    kind = draw.choice(["application/json"] * 8 + ["text/plain", ""])
    if draw.random() < 0.15:
        _leave(api, path, draw)
        return
    found = api.client.post(path, content=_body(draw), headers={"Content-Type": kind})
    assert found.status_code in (200, 400, 404, 415), (found.status_code, found.text)
    if found.status_code != 200:
        assert found.json()["error"]["message"]


def _leave(api: Served, path: str, draw: random.Random) -> None:
    """Send a request up to some byte, and go away."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": draw.random() < 0.5})
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    with socket.create_connection(("127.0.0.1", api.port)) as client:
        client.sendall(
            draw.choice([whole, whole[: draw.randrange(len(whole))], draw.randbytes(50) + b"\r\n\r\n"])
        )
        if draw.random() < 0.3:
            client.settimeout(0.05)
            with suppress(TimeoutError):
                client.recv(draw.choice([1, 100]))


def _fuzz(api: Served, num: int) -> None:
    for seed in range(num):
        _send(api, random.Random(seed))
    api.wait_until_idle()
    assert api.text("Hello")


def test_malformed_requests_get_clear_errors(api: Served) -> None:
    _fuzz(api, NUM_IN_SUITE)


@pytest.mark.campaign
def test_a_thousand_malformed_requests_get_clear_errors(api: Served) -> None:
    _fuzz(api, 1000)
    print("1,000 malformed requests, each with a clear error; the server answers as before")


@pytest.mark.campaign
def test_ten_thousand_requests_leave_memory_flat(api: Served) -> None:
    """Of what is resident after the first 2,000, the rest may add 32 MB."""
    sizes = []
    for number in range(10_000):
        draw = random.Random(number)
        if number % 4:
            _send(api, draw)
        else:
            api.text(f"Hello {draw.random()}", max_tokens=2)
        if number % 1000 == 999:
            gc.collect()
            sizes.append(_resident_bytes())
    print("resident after each thousand, MB: " + ", ".join(f"{size / 1e6:.0f}" for size in sizes))
    assert sizes[-1] - sizes[1] < 32e6


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
