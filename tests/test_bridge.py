"""In the place of Escribano's bridge: its protocol, its parser, and no picture encoded twice."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from escribano_samples import parsed
from screens import noise
from store_samples import frame

from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import list_manifests, read_manifest
from infer.canary import Verdict, combination, remember
from infer.request import Answer, Image, Request, Text, Usage
from infer.sampling import Sampling
from seeonce.bridge import answers, socket_server
from seeonce.bridge.answers import Answerer
from seeonce.bridge.launcher import install
from seeonce.bridge.messages import LINE_SCHEMA, as_lines, read_messages
from seeonce.bridge.socket_server import serve, socket_path
from seeonce.commands.bridge import _Log
from seeonce.runs.presets import ACTIVITIES

PROMPT = "A line for each: Frame 1: description: ... | activity: [one word] | apps: [list] | topics: [list]"

Talk = Callable[..., list[Any]]


def shown(*pictures: Path, prompt: str = PROMPT) -> dict[str, object]:
    """The parameters with which Escribano shows pictures: a label, a picture, and so on, then the prompt."""
    content: list[dict[str, object]] = []
    for number, picture in enumerate(pictures, 1):
        content.append({"type": "text", "text": f"Frame {number} (timestamp: {10 * number}s):"})
        content.append({"type": "image", "imagePath": str(picture)})
    content.append({"type": "text", "text": prompt})
    return {"messages": [{"role": "user", "content": content}], "maxTokens": 2000}


@pytest.fixture
def talk(run: Run, plain: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Return a function that runs the bridge, sends it requests one by one and returns its replies."""
    Home(home).prepare()
    remember(Home(home), combination(), Verdict.batched)  # test_canary runs the trial
    monkeypatch.setenv("ESCRIBANO_MLX_SOCKET_PATH", str(tmp_path / "e.sock"))
    monkeypatch.setenv("ESCRIBANO_VLM_MODEL", str(plain))

    def talk(*requests: dict[str, object] | bytes, options: str = "--max-pixels 65536") -> list[Any]:
        replies: list[Any] = []

        def client() -> None:
            connection = _connect(socket_path())
            with connection, connection.makefile("rwb") as lines:
                for number, request in enumerate([*requests, {"method": "shutdown"}]):
                    raw = (
                        request
                        if isinstance(request, bytes)
                        else json.dumps({"id": number} | request).encode()
                    )
                    lines.write(raw + b"\n")
                    lines.flush()
                    replies.append(json.loads(lines.readline()))

        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        ended = run(f"seeonce bridge {options}")
        thread.join(30)
        assert ended.code == 0, ended.err
        assert ended.json == {"status": "ready", "model": str(plain), "mode": "vlm"}
        assert not socket_path().exists()
        return replies

    return talk


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            connection.connect(str(path))
            return connection
        connection.close()
        time.sleep(0.02)
    raise TimeoutError(path)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three frames in the folder that Escribano extracts a video's frames to."""
    folder = tmp_path / "escribano" / "rec" / "frames"
    folder.mkdir(parents=True)
    paths = [folder / f"frame_{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        noise(number).save(path)
    return paths


def test_pictures_are_described_in_lines_that_escribano_reads_and_encoded_once(
    talk: Talk, pictures: list[Path], home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = LINE_SCHEMA.replace("{0,239}", "{0,9}").replace("{0,31}", "{0,1}")  # a random model fills it
    monkeypatch.setattr(answers, "LINE_SCHEMA", short)
    ask = {"method": "vlm_infer", "params": shown(*pictures[:2])}
    first, ping, gone, text, *_ = talk(
        ask, {"method": "ping"},
        {"method": "vlm_infer", "params": shown(pictures[2], pictures[2].with_name("no.jpg"))},
        {"method": "text_infer", "params": {"rawPrompt": "Hello", "maxTokens": 3}},
    )  # fmt: skip
    assert (first["id"], first["done"]) == (0, True)
    said = parsed(first["text"], 2)
    assert {one["activity"] for one in said} <= set(ACTIVITIES)
    assert not any("]" in item for one in said for item in (*one["apps"], *one["topics"]))  # type: ignore[misc]
    assert (
        first["stats"]["total_tokens"]
        == first["stats"]["prompt_tokens"] + first["stats"]["generation_tokens"]
    )
    assert ping == {"id": 1, "pong": True, "text": "", "done": True}
    assert "no.jpg" in gone["error"]
    assert (text["id"], text["stats"]["generation_tokens"]) == (3, 3)
    monkeypatch.setattr("precompute.encoder.VisionEncoder.__init__", pytest.fail)  # nothing is left to encode
    again, *_ = talk(ask)
    assert again["text"] == first["text"]
    (ref,) = list_manifests(Home(home))
    assert [entry.timestamp_s for entry in read_manifest(ref.path).frames] == [10.0, 20.0, 10.0]
    assert run(f"seeonce encode {ref.recording.id} --max-pixels 65536").code == 0


def test_every_method_of_the_protocol_is_answered(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = {"rawPrompt": "one two three", "maxTokens": 10}
    replies = talk(
        {"method": "text_prompt_fit", "params": prompt}, {"method": "unload_vlm"}, {"method": "unload_llm"},
        {"method": "llm_infer"}, {"method": "load_llm"}, {"method": "dance"}, b"{no json", b"[1]",
        {"method": "vlm_infer"}, {"method": "vlm_infer", "params": {"rawPrompt": "x", "maxTokens": 0}},
        {"method": "text_infer", "params": {"messages": [{"role": "user", "content": "Hi"}], "maxTokens": 2}},
    )  # fmt: skip
    fit, *rest = replies
    assert fit["safe_input_budget"] == fit["context_limit"] - 10 - 24000
    assert fit["fits"] == (fit["prompt_tokens"] <= fit["safe_input_budget"])
    assert [reply.get("status") for reply in rest[:2]] == ["unloaded"] * 2
    assert [reply.get("error", "")[:17] for reply in rest[2:9]] == [
        "llm_infer not ava", "load_llm not avai", "Unknown method: d", "Invalid JSON: Exp",
        "Invalid request: ", "No messages provi", "maxTokens is 0; e",
    ]  # fmt: skip
    assert "id" not in rest[5]
    assert "text" in rest[9]
    assert rest[-1] == {"id": 11, "status": "shutting_down"}


def test_an_answer_that_takes_too_long_is_an_error_and_the_next_is_answered(
    talk: Talk, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "alarm", lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds / 1000))
    late, *_ = talk({"method": "vlm_infer", "params": shown(*pictures[:1])})
    assert late["error"] == "VLM inference timed out after 300s"


@pytest.mark.parametrize("model", ["", "/no/such/folder"])
def test_without_a_model_the_client_is_told_on_standard_output(
    model: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCRIBANO_VLM_MODEL", model)
    ended = run("seeonce bridge")
    assert (ended.code, ended.json["status"]) == (1, "fatal")
    assert "ESCRIBANO_VLM_MODEL" in ended.json["error"] or model in ended.json["error"]


# --- what is sent back


@pytest.mark.parametrize(
    ("line", "apps", "topics"),
    [
        ("description: A | activity: coding | apps: [] | topics: []", [], []),
        ("description: A | activity: coding | apps: [Code, Chrome] | topics: [x]", ["Code", "Chrome"], ["x"]),
        ("description: A | activity: coding | apps: [] | topics: [x, y]", [], ["x", "y"]),
        ("description: as in Frame 2: | activity: other | apps: [Frame 1: b] | topics: [keyframe 1: c]",
         ["Frame 1 - b"], ["keyframe 1 - c"]),
    ],
)  # fmt: skip
def test_lists_and_words_come_out_of_its_parser_as_they_were(
    line: str, apps: list[str], topics: list[str]
) -> None:
    sampling = Sampling(schema=LINE_SCHEMA)
    request = Request(0, (Image(frame(0)), Image(frame(1)), Text("?")), sampling, numbered=True)
    text = f"Frame 1: {json.dumps(line)}\nFrame 2: {json.dumps(line)}"
    sent = as_lines(request, Answer(text, "stop", Usage(1, 1)))
    for found in parsed(sent, 2):
        assert (found["apps"], found["topics"]) == (apps, topics)
        assert not str(found["description"]).startswith("Failed")
    cut = as_lines(request, Answer(text[:-9], "length", Usage(1, 1)))
    assert [one["description"][:6] for one in parsed(cut, 2)][1] == "Failed"  # type: ignore[index]


def test_messages_of_other_forms_are_read_and_nonsense_is_refused() -> None:
    asked = read_messages(
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
    )
    assert (asked.system, asked.parts, asked.wants_lines) == ("S", ("U",), False)
    odd: tuple[object, ...] = (
        None,
        [],
        [1],
        [{"role": "user", "content": [{"type": "video"}]}],
        [{"content": []}],
    )
    for messages in odd:
        with pytest.raises(InputError):
            read_messages({"messages": messages})


# --- the launcher


def test_the_launcher_runs_the_bridge_for_pictures_and_the_real_python_for_all_else(
    run: Run, tmp_path: Path, home: Path
) -> None:
    real = tmp_path / "real python's"
    real.write_text('#!/bin/sh\necho "real: $*"\n')
    real.chmod(0o755)
    ended = run("seeonce bridge --install --max-pixels 65536 --python", real)
    assert ended.code == 0
    launcher = home / "escribano-python"
    assert f"ESCRIBANO_PYTHON_PATH={launcher}" in ended.out
    run("seeonce bridge --install --python", sys.executable, "--path", tmp_path / "other")

    def said(*words: str) -> str:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([launcher, *words], capture_output=True, text=True, env=environ)
        return done.stdout

    assert said("mlx_bridge.py", "--mode", "llm") == "real: mlx_bridge.py --mode llm\n"
    assert said("-c", "x y") == "real: -c x y\n"
    assert "ESCRIBANO_VLM_MODEL not set" in said("mlx_bridge.py", "--mode", "vlm")


def test_a_launcher_replaces_no_file_of_others_and_does_not_call_itself(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    assert "is there and is not ours" in run("seeonce bridge --install --path", mine).error
    assert mine.read_text() == "mine"
    place, _ = install(Home(tmp_path / "home"), tmp_path / "launcher", Path(sys.executable), None)
    said = run("seeonce bridge --install --path", place, "--python", place).error
    assert "is no Python that Escribano can run" in said


# --- other clients than Escribano's


class _Quick(Answerer):
    """Answers at once; each request of a model says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def infer(self, params: Mapping[str, object], max_tokens: int) -> dict[str, object]:
        self.asked.append(params)
        return {"text": str(params.get("text", "")), "tokens": max_tokens}

    def keep(self, *, at_once: bool = True) -> None:
        """Keep nothing."""


@pytest.fixture
def socket_of(tmp_path: Path) -> Iterator[Path]:
    """The socket of a bridge that answers at once."""
    place, ready = tmp_path / "s.sock", threading.Event()
    thread = threading.Thread(target=serve, args=(place, _Quick(), lambda _: None, ready.set), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield place
    if thread.is_alive():
        _ask(place, b'{"method": "shutdown"}\n')
    thread.join(10)


def _ask(place: Path, *parts: bytes) -> list[dict[str, Any]]:
    with _connect(place) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.01)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


def test_lines_in_pieces_and_several_at_once_are_answered_each(socket_of: Path) -> None:
    line = json.dumps(
        {"id": 1, "method": "vlm_infer", "params": {"text": "né 🙂"}}, ensure_ascii=False
    ).encode()
    pieces = [line[start : start + 7] for start in range(0, len(line), 7)]
    (reply,) = _ask(socket_of, *pieces, b"\n")
    assert reply == {"id": 1, "text": "né 🙂", "tokens": 4000, "done": True}
    assert [one["id"] for one in _ask(socket_of, b"\r\n", line + b"\n\n" + line + b"\n", line)] == [1, 1, 1]


def test_a_line_that_is_too_long_gets_one_error_and_the_next_client_is_answered(
    socket_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_server, "_MAX_LINE_BYTES", 100)
    (reply,) = _ask(socket_of, b'{"method": "ping", "x": "' + b"x" * 500 + b'"}\n')
    assert reply == {"error": "The request is too long", "done": True}
    assert _ask(socket_of, b'{"id": 2, "method": "ping"}\n')[0]["id"] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": NaN, "method": "ping"}', {"id": 0, "pong": True}),
        (b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "method": "ping"}', {"id": 0, "pong": True}),
        (b"[" * 90_000, {}),
        (b'{"id": 1, "method": "\xff"}', {}),
        (b'{"id": ' + b"9" * 6000 + b', "method": "ping"}', {}),
        (b'{"id": 1, "method": "\\ud800' + b"x" * 900 + b'"}', {"id": 1}),
        (b'{"id": 1, "method": "vlm_infer", "params": {"maxTokens": 5.0}}', {"tokens": 5}),
        (b'{"id": 1, "method": "vlm_infer", "params": {"maxTokens": 1e99}}', {"id": 1}),
        (b'{"id": 1, "method": "vlm_infer", "params": {"maxTokens": null}}', {"id": 1}),
    ],
)  # fmt: skip
def test_a_line_of_nonsense_gets_one_short_line_of_json(
    line: bytes, said: dict[str, Any], socket_of: Path
) -> None:
    (reply,) = _ask(socket_of, line + b"\n")
    assert said.items() <= reply.items()
    assert reply["done"]
    assert ("error" in reply) != ("pong" in reply or "tokens" in reply)
    assert len(json.dumps(reply)) < 300


def test_clients_wait_for_each_other_and_one_that_goes_away_is_no_harm(socket_of: Path) -> None:
    with _connect(socket_of) as first, _connect(socket_of) as second:
        second.sendall(b'{"id": 2, "method": "ping"}\n')
        first.sendall(b'{"id": 1, "method": "pi')
        first.close()
        with second.makefile("rb") as lines:
            assert json.loads(lines.readline())["id"] == 2
    with _connect(socket_of) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sendall(b'{"method": "ping"}\n' * 1000)
    assert _ask(socket_of, b'{"id": 3, "method": "ping"}\n')[0]["id"] == 3


def test_a_bridge_that_ends_leaves_the_socket_of_a_later_one(socket_of: Path) -> None:
    ready = threading.Event()
    with _connect(socket_of) as client:
        later = threading.Thread(target=serve, args=(socket_of, _Quick(), print, ready.set), daemon=True)
        later.start()
        assert ready.wait(10)
        client.sendall(b'{"method": "shutdown"}\n')
        assert client.recv(100)
        assert client.recv(100) == b""
    assert _ask(socket_of, b'{"id": 4, "method": "ping"}\n{"method": "shutdown"}\n')[0]["id"] == 4
    later.join(10)
    assert not socket_of.exists()


def test_what_cannot_be_logged_ends_no_bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESCRIBANO_MLX_LOG_FILE", str(tmp_path / "log"))
    _Log().say("x\ud800")
    assert (tmp_path / "log").read_text() == "[seeonce] x\\ud800\n"
    monkeypatch.setenv("ESCRIBANO_MLX_LOG_FILE", str(tmp_path))
    _Log().say("no file")
