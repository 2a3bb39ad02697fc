"""Another server beside ours: it is asked the same, and what servers do is coped with and said."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cache.base.errors import InputError
from cache.base.home import Home
from infer.limits import BatchLimits
from seeonce.bench import client
from seeonce.bench.client import Endpoint, send_all
from seeonce.bench.endpoint import ServerComparison
from seeonce.bench.passes import QUESTIONS, Ask, Encoded, Model, PassTwo, draw_frames, encode_frames
from seeonce.bench.report import Table
from seeonce.runs.score import read_truth

ASKED = QUESTIONS[3:4]  # topics: short, and another answer for each frame


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Three drawn screens under the demo checkpoint."""
    folder = tmp_path_factory.mktemp("bench")
    home = Home(folder / "home")
    return encode_frames(Model.open("demo", home), draw_frames(folder / "frames", 3), home)


@pytest.fixture(scope="module")
def picture(encoded: Encoded) -> Path:
    """The first of them."""
    return encoded.images / "0000.png"


@pytest.fixture(scope="module")
def right(encoded: Encoded) -> list[str]:
    """What we answer about each of them."""
    answers = PassTwo(encoded).texts(encoded.requests(ASKED, 64), BatchLimits())
    assert len(set(answers)) == 3
    return answers


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a hundredth of what a user's server is given."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.005)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, reply = self.server.answer(body)  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _server(
    answer: Any, timeout_s: float = 60.0, handler: type[BaseHTTPRequestHandler] = _Handler
) -> Iterator[Endpoint]:
    """Serve ``answer``, which takes a request's body and returns a status and the bytes of a reply."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.answer = answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", timeout_s)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _says(text: object) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def _beside(encoded: Encoded, answers: Iterator[str], levels: tuple[int, ...] = (1,)) -> list[Table]:
    truth = read_truth(encoded.images / "truth.csv")
    with _server(lambda body: _says(next(answers))) as endpoint:
        return ServerComparison(endpoint, encoded, ASKED, 64, truth, lambda _: None).measure(levels)


def _rows(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_a_server_that_answers_as_we_do_is_judged_by_its_speed_alone(
    encoded: Encoded, right: list[str]
) -> None:
    found = _beside(encoded, iter([right[0], *right]))
    assert found[0].outcome is not None
    assert found[0].outcome.is_same
    assert (found[0].outcome.num_matching, found[0].outcome.num_true) == (3, (3, 3))
    assert [row["path"] for row in _rows(found[1])] == ["seeonce, from the store", "m"]
    assert found[2].remarks == ("Every answer is the same on both sides.",)


def test_a_server_that_mixes_up_frames_is_found_out(encoded: Encoded, right: list[str]) -> None:
    found = _beside(encoded, iter([right[0], right[1], right[2], right[0]]))  # the first is the greeting
    ours, theirs = _rows(found[0])
    assert (ours["matching ours"], ours["about another frame"], ours["true"]) == (3, 0, 3)
    assert (theirs["about another frame"], theirs["true"]) == (3, 0)
    assert found[0].outcome is not None
    assert found[0].outcome.word == "answers differ"
    samples = _rows(found[2])
    assert {(row["seeonce"], row["the server"]) for row in samples} == set(
        zip(right, [*right[1:], right[0]], strict=True)
    )


def test_a_server_that_takes_one_request_at_a_time_is_said_to(encoded: Encoded, right: list[str]) -> None:
    one_at_a_time = threading.Lock()

    def answer(body: object) -> tuple[int, bytes]:
        with one_at_a_time:
            time.sleep(0.3)  # far more than all else, on a busy machine too
            return _says("yes")

    with _server(answer) as endpoint:
        table = ServerComparison(endpoint, encoded, ASKED, 64, None, lambda _: None).measure((1, 3))[0]
    assert "it takes them one at a time" in table.remarks[-1].replace("the server takes", "it takes")


def test_a_refused_request_is_tried_again_and_one_that_fails_is_counted(picture: Path) -> None:
    replies = iter([(503, b"busy"), (429, b""), _says("yes"), (400, b"no such\nmodel"), (200, b"no json")])
    with _server(lambda body: next(replies)) as endpoint:
        first, second, third = (send_all(endpoint, [Ask(picture, "What?")], 1, 8)[0] for _ in range(3))
    assert (first.text, first.num_tries, first.error) == ("yes", 3, None)
    assert (second.num_tries, second.error) == (1, "HTTP 400, no such model")
    assert (third.num_tries, third.error) == (1, "its reply is no chat completion")


def test_a_server_that_refuses_for_good_is_given_up_and_the_rest_is_not_sent(picture: Path) -> None:
    asked: list[object] = []

    def answer(body: object) -> tuple[int, bytes]:
        asked.append(body)
        return 503, b"busy"

    with _server(answer) as endpoint:
        replies = send_all(endpoint, [Ask(picture, "What?")] * 20, 1, 8)
    assert [reply.num_tries for reply in replies] == [5] * 8 + [0] * 12
    assert len(asked) == 40
    assert replies[-1].error == "not sent: 8 requests in a row had failed"


def test_a_time_out_is_not_tried_again(picture: Path) -> None:

    def answer(body: object) -> tuple[int, bytes]:
        time.sleep(0.3)
        return _says("late")

    with _server(answer, timeout_s=0.1) as endpoint:
        (reply,) = send_all(endpoint, [Ask(picture, "What?")], 1, 8)
    assert (reply.num_tries, reply.error) == (1, "no answer within 0.1 s")


def test_an_answer_without_text_is_a_failure(picture: Path) -> None:
    with _server(lambda body: _says(None)) as endpoint:
        (reply,) = send_all(endpoint, [Ask(picture, "What?")], 1, 8)
    assert reply.error == "its reply is no chat completion"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"[" * 100_000, "its reply is no chat completion"),
        (b'{"choices": []}', "its reply is no chat completion"),
        (b'{"error": {"message": "no \\u001b[1mmodel"}}', "model"),
        (b" " * 1_000_001, "its reply has more than 1,000,000 bytes"),
        (_says("far " * 4_000)[1], "its text has more than 10,000 characters, whatever was asked for"),
    ],
)
def test_what_is_no_answer_fails_in_words_and_is_not_tried_again(
    reply: bytes, error: str, picture: Path
) -> None:
    with _server(lambda body: (200, reply)) as endpoint:
        (failed,) = send_all(endpoint, [Ask(picture, "What?")], 1, 8)
    assert failed.num_tries == 1
    assert failed.error is not None
    assert error in failed.error
    assert failed.error.isprintable()


def test_an_answer_in_parts_is_one_and_half_a_character_is_a_question_mark(picture: Path) -> None:
    parts = [{"text": "a "}, {"text": "\ud800"}]
    with _server(lambda body: (200, _says(parts)[1])) as endpoint:
        (reply,) = send_all(endpoint, [Ask(picture, "What?")], 1, 8)
    assert (reply.text, reply.error) == ("a ?", None)


class _Trickles(_Handler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for _ in range(2_000):
                self.wfile.write(b" ")
                time.sleep(0.02)


def test_a_server_that_keeps_sending_a_little_is_timed_out_all_the_same(picture: Path) -> None:
    with _server(None, timeout_s=0.2, handler=_Trickles) as endpoint:
        (reply,) = send_all(endpoint, [Ask(picture, "What?")], 1, 8)
    assert reply.error == "no answer within 0.2 s"
    assert reply.latency_s < 30  # it sends for 40 s


def test_ctrl_c_does_not_wait_for_the_server(picture: Path) -> None:
    go_on = threading.Event()

    def answer(body: object) -> tuple[int, bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(60)
        return _says("late")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    with _server(answer) as endpoint:
        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            send_all(endpoint, [Ask(picture, "What?")], 1, 8)
        took_s = time.perf_counter() - started
        go_on.set()
    signal.signal(signal.SIGINT, before)
    assert took_s < 30  # the server has not answered yet


@pytest.mark.parametrize("url", ["http://\0", f"http://{'a' * 64}.", "ftp://host"])
def test_an_address_that_is_none_is_a_failure(url: str, picture: Path) -> None:
    (reply,) = send_all(Endpoint(url, "m", 5.0), [Ask(picture, "What?")], 1, 8)
    assert reply.error


def test_a_password_in_the_address_is_not_shown() -> None:
    assert Endpoint("http://me:secret@host:1/v1?key=secret", "m").shown == "http://host:1/v1"


def test_a_key_that_is_none_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9")
    with pytest.raises(InputError, match=r"^OPENAI_API_KEY has characters that no key has"):
        send_all(Endpoint("http://127.0.0.1:1", "m"), [Ask(tmp_path, "What?")], 1, 8)


def test_a_level_that_fails_is_not_the_fastest_and_every_level_counts(
    encoded: Encoded, right: list[str]
) -> None:
    answers = iter([_says(right[0]), *map(_says, right)])
    truth = read_truth(encoded.images / "truth.csv")
    with _server(lambda body: next(answers, (400, b"no"))) as endpoint:
        found = ServerComparison(endpoint, encoded, ASKED, 64, truth, lambda _: None).measure((1, 2))
    assert found[0].outcome is not None
    assert found[0].outcome.work.endswith("1 in flight")
    assert (found[0].outcome.num_answers, found[0].outcome.num_failed, found[0].outcome.num_true) == (
        6,
        3,
        (6, 3),
    )
    assert found[2].remarks == ("The server gave no answer.",)
    assert "one at a time" not in found[0].remarks[-1]


def test_after_a_server_was_given_up_no_other_level_is_asked_and_each_level_is_kept(
    encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_NUM_FAILURES", 2)
    answers, kept = iter([_says("yes")]), list[list[Table]]()
    with _server(lambda body: next(answers, (400, b"no"))) as endpoint:
        found = ServerComparison(endpoint, encoded, ASKED, 8, None, lambda _: None).measure(
            (1, 2), kept.append
        )
    assert kept == [found]
    assert {row["in flight"] for row in _rows(found[0])} == {1}
    assert found[0].remarks[-1] == "Given up at 1 in flight: no higher level was asked."


def test_what_pass_one_took_is_told_beside_the_server(encoded: Encoded, right: list[str]) -> None:
    remark = _beside(encoded, iter([right[0], *right]))[0].remarks[0]
    assert f"pass one over these frames took {encoded.took_s:.3g} s before, once." in remark
    assert encoded.took_s > 0


def test_a_server_that_dies_is_not_waited_for(encoded: Encoded, right: list[str]) -> None:
    replies = iter([_says(right[0])])
    with _server(lambda body: next(replies, (500, b"out of memory"))) as endpoint:
        found = ServerComparison(endpoint, encoded, ASKED, 64, None, lambda _: None).measure((2,))
    assert found[0].outcome is not None
    assert (found[0].outcome.num_failed, found[0].outcome.word) == (3, "answers differ")
    assert "Failed: HTTP 500, out of memory." in found[0].remarks


def test_a_server_that_does_not_answer_is_named_with_what_to_check(encoded: Encoded) -> None:
    with _server(lambda body: (404, b"")) as endpoint, pytest.raises(InputError, match="--endpoint-model"):
        ServerComparison(endpoint, encoded, QUESTIONS[:1], 8, None, lambda _: None)
