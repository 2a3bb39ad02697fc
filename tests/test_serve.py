"""``seeonce serve`` answers OpenAI's API as ``describe`` answers, streamed or not, and refuses by name."""

import asyncio
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import pytest
import uvicorn
from live_mlx_vlm import PROMPTS, Encoded, draw_noise
from PIL import Image
from served import Served, data_url, image, prepared, served, text
from uvicorn.server import ServerState

from cache.base.home import Home
from cache.leases import active_leases
from cache.manifest import write_manifest
from infer.limits import BatchLimits
from infer.request import Answer, Request, Usage
from infer.sampling import Sampling
from infer.sequence import Sequence
from seeonce.server import connections, guard, remote
from seeonce.server.completions import _pieces, merged
from seeonce.server.errors import ApiError
from seeonce.server.growing_text import GrowingText
from seeonce.server.jobs import Choice, Delta, Ended, Job
from seeonce.server.options import ServeOptions

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    images = draw_noise(tmp_path_factory.mktemp("images"), 3)
    return images, tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def encoded(plain: Path, places: tuple[Path, Path]) -> Encoded:
    return prepared(plain, *places)


@pytest.fixture(scope="module")
def api(encoded: Encoded, places: tuple[Path, Path]) -> Iterator[Served]:
    options = ServeOptions(
        str(encoded.checkpoint.path), BatchLimits(4, 2, 64), folders=(places[0],), max_open=64
    )
    with served(places[1], options) as found:
        yield found


def _frame(encoded: Encoded, index: int) -> str:
    return f"seeonce:{encoded.manifest.recording.id}/{index}"


def _picture(seed: int) -> bytes:
    file, pixels = BytesIO(), random.Random(seed).randbytes(96 * 64 * 3)
    Image.frombytes("RGB", (96, 64), pixels).save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    """Return a small PNG file that says it has 900 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _content(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def test_many_clients_at_once_get_the_answers_that_describe_gives(api: Served, encoded: Encoded) -> None:
    requests = encoded.requests(PROMPTS[:4], SAMPLING)
    wanted = encoded.answers(requests, BatchLimits(1, 1, 2048), None)
    names = [Path(frame.source).read_bytes() for frame in encoded.manifest.frames]

    def asked(number: int) -> str:
        frame, prompt = divmod(number, 4)
        url = _frame(encoded, frame) if number % 2 else data_url(names[frame], "image/jpeg")
        content = [image(url), text(PROMPTS[prompt])]
        return _content(api.streamed(content)) if number % 3 else api.text(content)

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(asked, range(len(requests))))
    assert found == [wanted[request.id].text for request in requests]
    assert api.metric("images_encoded_total") == 0


def test_a_stream_names_its_role_its_end_and_its_usage(api: Served, encoded: Encoded) -> None:
    content = [image(_frame(encoded, 0)), text("What?")]
    chunks = api.streamed(content, stream_options={"include_usage": True}, n=2)
    whole = api.ask(content).json()
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [
        {"role": "assistant", "content": ""}
    ] * 2
    ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert {(end["index"], end["finish_reason"]) for end in ends} == {(0, "length"), (1, "length")}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2 * whole["usage"]["completion_tokens"]
    assert chunks[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_log_probabilities_come_with_the_tokens_streamed_or_not(api: Served) -> None:
    whole = api.ask("Say!", logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    chunks = api.streamed("Say!", logprobs=True, top_logprobs=2)
    parts = [part for c in chunks if (found := c["choices"][0]["logprobs"]) for part in found["content"]]
    assert parts == whole
    assert len(whole) == 12
    assert all(each["top_logprobs"][0]["logprob"] >= each["logprob"] for each in whole)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shown_of_a_growing_text_is_a_beginning_of_the_whole(seed: int) -> None:
    draw = random.Random(seed)
    whole = "".join(draw.choice(["a", "b ", " ", "é", "🙂", "END", "</think>", "<think>"]) for _ in range(40))
    whole = draw.choice(["", "<think>", "  <thi"]) + whole
    parts = list(whole.encode())

    def decode(tokens: Any) -> str:
        return bytes(tokens).decode(errors="replace")

    stop = draw.choice([(), ("END",), ("b a", "ND")])
    growing = GrowingText(decode, stop, plain=False, opened=draw.random() < 0.3)
    shown = [("", "")]
    while parts:
        several = draw.choice([1, 1, 2, 9])
        growing.add(parts[:several])
        del parts[:several]
        shown.append(growing.shown)
        assert all(new.startswith(old) for old, new in zip(*shown[-2:], strict=True))
        assert not any(word in part for part in shown[-1] for word in (*stop, "�"))


def test_words_of_a_stream_come_together_until_the_tick_has_moved_on() -> None:
    told: list[Any] = []
    job = Job(Mock(), (), told.append, stream=True)
    ticks = iter([1.0, 1.0, 1.0, 2.0, 2.0])
    choice = Choice(job, 0, lambda _: None, lambda: next(ticks))
    choice._text = GrowingText(lambda tokens: bytes(tokens).decode(), (), plain=True, opened=False)
    for token in b"abcde":
        choice.seen(token)
    choice.ended(Answer("abcde", "stop", Usage(1, 5)))
    assert told[:2] == [Delta(0, "a"), Delta(0, "bcd")]
    assert told[2].rest == Delta(0, "e")


def test_a_stop_string_is_never_streamed(api: Served) -> None:
    whole = api.text("Go on")
    stop = whole[3:5]
    found = api.streamed("Go on", stop=stop)
    assert _content(found) == whole.partition(stop)[0].strip()
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_lease_is_held_while_a_model_answers_so_that_a_watch_waits(
    api: Served, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = Home(places[1]).store, list[str]()
    monkeypatch.setattr(
        api.server.engine, "_first_token", lambda _: seen.extend(one.purpose for one in active_leases(store))
    )
    api.text([text("What?")])
    assert [purpose.partition(" ")[0] for purpose in seen] == ["serve"]
    api.wait_until_idle()
    until_s = time.monotonic() + 10
    while active_leases(store):
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_schema_holds_a_streamed_answer(api: Served, encoded: Encoded) -> None:
    numbers = {"n": {"enum": [1, 22]}}
    schema = {"type": "object", "properties": numbers, "required": ["n"], "additionalProperties": False}
    asked = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = _content(api.streamed([image(_frame(encoded, 1)), text("n?")], response_format=asked))
    assert json.loads(found)["n"] in (1, 22)


def test_a_conversation_is_the_prompt_that_the_template_makes_of_it(encoded: Encoded) -> None:
    from infer.request import Image as Shown
    from infer.request import Request, Text, Turn
    from infer.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(encoded.checkpoint)
    first, second = encoded.manifest.frames[:2]
    earlier = (
        Turn("user", (Text("One "), Shown(first), Text("?"))),
        Turn("assistant", (Text("A <|im_end|> b"),)),
    )
    request = Request(0, (Shown(second), Text("Two?")), system="Be brief.", earlier=earlier)
    prompt = tokenizer.prompt(request)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("One "), {"type": "image"}, text("?")]},
        {"role": "assistant", "content": "A <|im_end|> b"},
        {"role": "user", "content": [{"type": "image"}, text("Two?")]},
    ]
    rendered = tokenizer.backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(prompt.ids) == tokenizer.backend.decode(
        tokenizer.backend.encode(rendered.replace("<|im_end|> b", "X b"), add_special_tokens=False),
        skip_special_tokens=True,
    ).replace("X b", "<|im_end|> b")
    assert [span.num_tokens for span in prompt.images] == [first.num_tokens, second.num_tokens]
    assert request.frames == (first, second)


def test_a_new_picture_is_encoded_once_and_kept(api: Served, encoded: Encoded) -> None:
    before = api.metric("images_encoded_total")
    content = [image(data_url(_picture(1))), text("What?")]
    with ThreadPoolExecutor(4) as clients:
        answers = set(clients.map(lambda _: api.text(content), range(4)))
    assert api.metric("images_encoded_total") == before + 1
    for _ in range(200):
        if api.metric("bytes_stored_total"):
            break
        time.sleep(0.02)
    assert {api.text(content)} == answers
    assert api.metric("images_encoded_total") == before + 1


def test_a_picture_that_is_not_to_be_kept_leaves_nothing(api: Served, encoded: Encoded) -> None:
    before = set(encoded.store.keys())
    content = [image(data_url(_picture(2))), text("What?")]
    answer = api.text(content, seeonce={"store": False})
    assert set(encoded.store.keys()) == before
    assert api.text(content, seeonce={"store": False}) == answer


def test_a_frame_is_found_without_a_list_of_the_store_until_its_recording_changes(
    api: Served, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, whole = Home(encoded.store.home.path), encoded.manifest
    content = [image(_frame(encoded, 2)), text("What?")]
    answer = api.text(content, max_tokens=2)
    with monkeypatch.context() as changed:
        changed.setattr("cache.manifest.names_in", pytest.fail)
        assert api.text(content, max_tokens=2) == answer
    write_manifest(home, replace(whole, frames=whole.frames[:2]))
    assert api.ask(content).status_code == 404
    write_manifest(home, whole)
    assert api.text(content, max_tokens=2) == answer


def test_fewer_pixels_are_fewer_tokens(api: Served) -> None:
    file = BytesIO()
    Image.frombytes("RGB", (256, 256), random.Random(3).randbytes(256 * 256 * 3)).save(file, "WEBP")
    url = data_url(file.getvalue())

    def num_tokens(**more: object) -> int:
        found = api.ask([image(url, **more), text("What?")], seeonce={"store": False}).json()
        return int(found["usage"]["prompt_tokens"])

    assert num_tokens() > num_tokens(max_pixels=16384) > num_tokens(max_pixels=4096)


def test_a_file_is_read_under_an_allowed_folder_alone(
    api: Served, places: tuple[Path, Path], tmp_path: Path
) -> None:
    inside = sorted(places[0].iterdir())[0]
    (tmp_path / "secret.png").write_bytes(_picture(4))
    link = places[0].parent / "link.png"
    assert api.ask([image(f"file://{inside}"), text("?")]).status_code == 200
    link.symlink_to(tmp_path / "secret.png")
    for url in (
        f"file://{tmp_path}/secret.png",
        f"file://{places[0]}/../link.png",
        "file://host/x",
        "file:///etc/passwd",
    ):
        assert api.ask([image(url), text("?")]).status_code == 400


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"logit_bias": {"1": 3}}, "logit_bias"),
    ({"guided_json": "{}"}, "guided_json"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 3}, "temperature"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"n": 1000}, "n"),
    ({"stop": [""]}, "stop"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "response_format",
    ),
    ({"seeonce": {"keep": 1}}, "seeonce"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 20000}]}, "messages"),
    ({"messages": [{"role": "user", "content": [image("data:image/png;base64,@@")]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [image("data:image/png;base64,aGVsbG8=")]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [image("https://example.org/a.png")]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [image("seeonce:demo")]}]}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_its_name(api: Served, fields: dict[str, Any], param: str) -> None:
    found = api.ask("Hello", **fields)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[0] in error["message"] or error["code"] == "context_length_exceeded"


def test_a_body_that_is_no_request_is_refused_and_the_server_lives_on(api: Served) -> None:
    deep = b'{"messages": ' + b"[" * 5000
    json_type = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b"null", b'{"messages": NaN}', deep, b"\xff\xfe", b'"\\ud800"'):
        found = api.client.post("/v1/chat/completions", content=body, headers=json_type)
        assert found.status_code == 400, body[:20]
        assert found.json()["error"]["type"] == "invalid_request_error"
    assert api.client.post("/v1/chat/completions", content=b"{}").status_code == 415
    assert api.ask([image(data_url(_bomb())), text("?")]).status_code == 400
    assert api.ask("Hello", model="another").json()["error"]["code"] == "model_not_found"
    assert api.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert api.text("Hello")


def test_a_client_that_goes_away_frees_its_row(api: Served) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000, "stream": True})
    for stream in (True, False):
        sent = body if stream else body.replace("true", "false")
        with socket.create_connection(("127.0.0.1", api.port)) as client:
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            client.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n{sent}".encode())
            while not api.metric("in_flight"):
                time.sleep(0.01)
        api.wait_until_idle()


def test_more_than_may_wait_are_told_to_come_later(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(api.server.engine, "_num_open", 63)
        found = api.ask("Hello", n=2)
    assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    few = replace(api.server.engine._options, max_open=1)
    monkeypatch.setattr(api.server.engine, "_options", few)  # no wait helps
    assert api.ask("Hello", n=2).status_code == 400


def test_a_request_that_raises_takes_no_other_along(
    api: Served, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = api.server.engine._loaded
    assert engine is not None
    hooks = engine.engine.hooks

    def failing(sequence: Sequence) -> Any:
        if sequence.request.sampling.max_tokens == 13:
            raise RuntimeError("a bug")
        return hooks(sequence)

    monkeypatch.setattr(engine.engine, "hooks", failing)
    with ThreadPoolExecutor(2) as clients:
        good = clients.submit(api.ask, "Hello", max_tokens=60)
        bad = clients.submit(api.ask, "Hello", max_tokens=13)
    assert bad.result().status_code == 500
    assert bad.result().json()["error"]["type"] == "server_error"
    assert good.result().status_code == 200
    assert api.text("Hello")


def test_a_prompt_that_cannot_be_made_is_told_and_takes_no_other_along(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = api.server.engine._loaded
    assert loaded is not None
    prompt = loaded.engine.tokenizer.prompt

    def failing(request: Request) -> Any:
        if request.sampling.max_tokens == 13:
            raise TypeError("what the template does not take")
        return prompt(request)

    monkeypatch.setattr(loaded.engine.tokenizer, "prompt", failing)
    with ThreadPoolExecutor(2) as clients:
        good = clients.submit(api.ask, "Hello", max_tokens=60)
        bad = clients.submit(api.ask, "Hello", max_tokens=13)
    assert (bad.result().status_code, good.result().status_code) == (500, 200)
    api.wait_until_idle()


def test_each_of_several_prompts_must_fit(api: Served) -> None:
    found = api.client.post("/v1/completions", json={"prompt": ["One", "word " * 5000], "max_tokens": 3})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_text_goes_on_without_a_template(api: Served) -> None:
    found = api.client.post(
        "/v1/completions", json={"prompt": ["One", "Two"], "max_tokens": 3, "n": 2}
    ).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["choices"][0]["text"] == found["choices"][1]["text"]
    assert found["usage"]["completion_tokens"] == 12
    alone = [
        api.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).json()["usage"]
        for prompt in ("One", "Two")
    ]
    assert found["usage"]["prompt_tokens"] == sum(each["prompt_tokens"] for each in alone)


def test_who_may_not_ask_is_refused(encoded: Encoded, places: tuple[Path, Path], api: Served) -> None:
    inside = guard.Guard(
        _answered,
        ServeOptions(hosts=frozenset({"box"}), origins=frozenset({"http://page"}), api_key="secret"),
    )

    def status(path: str = "/v1/models", **headers: str) -> int:
        return asyncio.run(_status(inside, path, {"host": "localhost:1", **headers}))

    key = {"authorization": "Bearer secret"}
    assert status() == 401
    assert status(authorization="Bearer secre") == 401
    assert status(**key) == 200
    assert status("/health") == 200
    assert status(**key, origin="http://page") == 200
    assert status(**key, origin="http://other") == 403
    assert status(**key | {"host": "rebound.example"}) == 403
    assert status(**key | {"host": "box:8765"}) == 200
    assert api.client.get("/health", headers={"Host": "rebound.example"}).status_code == 403


async def _answered(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def _status(app: Any, path: str, headers: dict[str, str]) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": pairs}
    await app(scope, None, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "224.0.0.1",
        "0.0.0.0",
    ],
)
def test_pictures_of_private_addresses_are_not_fetched(address: str) -> None:
    assert not remote.is_public(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ApiError, match="private"):
        asyncio.run(remote.fetch(f"http://{host}/a.png", 1000))


def test_a_redirect_to_a_private_address_is_not_followed(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = iter([True, False])
    monkeypatch.setattr(remote, "is_public", lambda _: next(looked_up))
    with pytest.raises(ApiError, match="private"):
        asyncio.run(remote.fetch(f"http://127.0.0.1:{api.port}/health/", 1000))


def test_a_picture_from_the_network_is_bounded(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "is_public", lambda _: True)
    url = f"http://localhost:{api.port}/metrics"
    assert asyncio.run(remote.fetch(url, 1 << 20)).startswith(b"# HELP")
    with pytest.raises(ApiError, match="larger"):
        asyncio.run(remote.fetch(url, 100))


def test_clients_that_stall_are_cut_off(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LONGEST_HEADERS_S", 0.2)
    monkeypatch.setattr(guard, "_LONGEST_WAIT_S", 0.2)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for sent, wanted in ((b"", b""), (head, b""), (head + b"Content-Length: 9\r\n\r\n{", b"HTTP/1.1 408")):
        with socket.create_connection(("127.0.0.1", api.port), timeout=20) as client:
            client.sendall(sent)
            assert client.recv(12).startswith(wanted)
            while client.recv(4096):
                pass


def test_a_reader_that_stalls_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LONGEST_STALL_S", 0.01)

    async def is_cut_off(*, reads_on: bool) -> bool:
        config = uvicorn.Config(_answered, log_config=None)
        config.load()
        loop, transport = asyncio.get_running_loop(), Mock(**{"get_extra_info.return_value": None})
        connection = connections.BoundedConnection(config, ServerState(), {}, loop)
        connection.connection_made(transport)
        connection.pause_writing()
        if reads_on:
            connection.resume_writing()
        await asyncio.sleep(0.05)
        connection.connection_lost(OSError())
        return bool(transport.abort.called)

    assert asyncio.run(is_cut_off(reads_on=False))
    assert not asyncio.run(is_cut_off(reads_on=True))


def test_a_model_is_unloaded_when_nobody_asks_and_loaded_again(
    encoded: Encoded, places: tuple[Path, Path]
) -> None:
    options = ServeOptions(str(encoded.checkpoint.path), idle_unload_s=0.2)
    with served(places[1], options) as found:
        answer = found.text("Hello")
        while found.client.get("/v1/models").json()["data"][0]["seeonce"]["loaded"]:
            time.sleep(0.05)
        assert found.text("Hello") == answer


def test_a_server_that_ends_without_a_model_leaves_no_thread_of_mlx(
    encoded: Encoded, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[None] = []
    right = mx.clear_streams
    monkeypatch.setattr(mx, "clear_streams", lambda: cleared.append(right()))
    options = ServeOptions(str(encoded.checkpoint.path), idle_unload_s=0.2)
    with served(places[1], options) as found:
        found.text("Hello")
        while found.client.get("/v1/models").json()["data"][0]["seeonce"]["loaded"]:
            time.sleep(0.05)
    assert cleared


def test_what_prompts_begin_with_outlives_the_server_unless_nothing_is_to_be_kept(
    encoded: Encoded, places: tuple[Path, Path]
) -> None:
    options = ServeOptions(str(encoded.checkpoint.path), BatchLimits(4, 2, 64), prefix_cache=1 << 30)
    kept, unkept = ([image(_frame(encoded, index)), text("What?")] for index in range(2))
    with served(places[1], options) as found:
        answer = found.text(kept)
        found.text(unkept, seeonce={"store": False})
    with served(places[1], options) as found:
        assert found.text(kept) == answer
        cached = found.metric("cached_tokens_total")
        assert cached > 0
        found.text(unkept)
        assert found.metric("cached_tokens_total") == cached


def test_an_error_comes_after_what_came_before_it() -> None:
    async def told() -> list[Any]:
        events: asyncio.Queue[Any] = asyncio.Queue()
        for event in (Delta(0, "a"), Delta(0, "b"), ApiError(500, "The engine failed.")):
            events.put_nowait(event)
        found: list[Any] = []
        try:
            async for piece in _pieces(events, 1):
                found += piece
        except ApiError as error:
            found.append(error.status)
        return found

    assert asyncio.run(told()) == [Delta(0, "ab"), 500]


def test_what_came_while_a_client_was_not_served_is_one_chunk() -> None:
    answer = Answer("abc", "stop", Usage(1, 3))
    told: list[Delta | Ended] = [
        Delta(0, "a"),
        Delta(1, "x"),
        Delta(0, "b"),
        Ended(0, answer, 0, Delta(0, "c")),
    ]
    assert merged(told) == [Delta(1, "x"), Ended(0, answer, 0, Delta(0, "abc"))]
