"""The benchmark: it measures in turn, marks wrong answers wrong, and copes with what servers do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from bench import prompt_experiment, resolution
from bench.endpoint import Ask, Endpoint, measure, send_all
from bench.measure import Contestant, Timing, alternate
from bench.stage import QUESTIONS, Encoded, Model, Warm, draw_frames, encode_frames
from bench.table import Table
from cache.errors import InputError
from cache.home import Home
from demo.score import read_truth
from infer.limits import BatchLimits


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Three drawn screens under the demo checkpoint."""
    folder = tmp_path_factory.mktemp("bench")
    home = Home(folder / "home")
    return encode_frames(Model.open("demo", home), draw_frames(folder / "frames", 3), home)


def test_contestants_run_in_turn_and_the_warm_up_is_not_timed() -> None:
    order: list[str] = []
    contestants = [Contestant(name, partial(order.append, name)) for name in "ab"]
    found = alternate(contestants, num_repetitions=2, num_warm_ups=1)
    assert order == ["a", "b"] * 3
    assert [len(measured.timing.seconds) for measured in found] == [2, 2]


def test_a_timing_is_its_median_and_how_far_apart_the_ends_are() -> None:
    timing = Timing((1.0, 9.0, 2.0))
    assert (timing.median_s, timing.spread) == (2.0, 4.0)


def test_a_table_is_markdown_for_a_person_and_rows_by_column_for_machines() -> None:
    table = Table("x", "Title", ("a", "b"), ((1_000, 0.12345), ("p|q", None)), ("Left out: c.",))
    assert "| 1,000 | 0.123 |" in table.as_markdown()
    assert "| p\\|q | – |" in table.as_markdown()
    assert table.as_json()["rows"] == [{"a": 1_000, "b": 0.12345}, {"a": "p|q", "b": None}]


def test_answers_from_the_store_are_those_of_live_and_batch_generate_is_marked_wrong(
    encoded: Encoded, tmp_path: Path
) -> None:
    sizes = prompt_experiment.Sizes((2,), max_tokens=12, num_in_flight=6, num_repetitions=1)
    table = prompt_experiment.measure(encoded, tmp_path, sizes)
    wrong = {str(row[1]): row[-1] for row in table.rows}
    assert [wrong[name] for name in wrong if name.startswith("seeonce")] == [0, 0, 0]
    assert wrong["mlx-vlm live, batch_generate"] != 0
    assert "allow 2·(V + P + s + d)" in table.remarks[0]


def test_sizes_that_would_take_too_long_are_left_out_by_name(encoded: Encoded, tmp_path: Path) -> None:
    table = resolution.measure(encoded.model, tmp_path, num_repetitions=1, budget_s=0.0)
    assert [row[0] for row in table.rows] == ["224x224"]
    assert "1920x1080" in table.remarks[-1]


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
def _server(answer: Any) -> Iterator[Endpoint]:
    """Serve ``answer``, which takes a request's body and returns a status and the bytes of a reply."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.answer = answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _says(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def test_a_server_that_mixes_up_frames_is_found_out(encoded: Encoded) -> None:
    requests = encoded.requests(QUESTIONS[4:5], 64)
    right = Warm(encoded).texts(requests, BatchLimits())
    assert len(set(right)) == 3
    turned = iter([right[0], right[1], right[2], right[0]])  # the first is the greeting
    truth = read_truth(encoded.images / "truth.json")
    with _server(lambda body: _says(next(turned))) as endpoint:
        table = measure(endpoint, encoded, QUESTIONS[4:5], (1,), 64, truth)
    ours, theirs = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (ours["unlike ours"], ours["about another frame"], ours["true"]) == (0, 0, 3)
    assert (theirs["unlike ours"], theirs["about another frame"], theirs["true"]) == (3, 3, 0)


def test_a_refused_request_is_tried_again_and_one_that_fails_is_counted(tmp_path: Path) -> None:
    picture = draw_frames(tmp_path, 1) / "0000.png"
    replies = iter([(503, b"busy"), _says("yes"), (503, b"busy"), (200, b"no json")])
    with _server(lambda body: next(replies)) as endpoint:
        first, second = (send_all(endpoint, [Ask(picture, "What?")], 1, 8)[0] for _ in range(2))
    assert (first.text, first.num_tries, first.error) == ("yes", 2, None)
    assert (second.text, second.num_tries, second.error) == ("", 2, "its reply is no chat completion")


def test_a_server_that_does_not_answer_is_named_with_what_to_check(encoded: Encoded) -> None:
    with _server(lambda body: (404, b"")) as endpoint, pytest.raises(InputError, match="--endpoint-model"):
        measure(endpoint, encoded, QUESTIONS[:1], (1,), 8, None)


def test_dims_and_a_model_exclude_each_other(run: Run) -> None:
    ended = run("seeonce bench --quick --dims small --model demo")
    assert ended.code == 1
    assert ended.err == "error: --dims and --model exclude each other: give random weights or a checkpoint.\n"
