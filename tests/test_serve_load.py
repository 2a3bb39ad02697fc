"""Sixteen clients at once: every answer is true and the one that ``describe`` gives, and about as fast."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from live_mlx_vlm import Encoded
from PIL import Image
from served import Served, data_url, image, prepared, served, text

from infer.engine import Engine
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling
from seeonce.bench.options import Dims
from seeonce.bench.random_weights import write_checkpoint
from seeonce.demo import questions
from seeonce.demo.questions import QUESTIONS
from seeonce.runs.prompts import Prompt
from seeonce.runs.score import read_truth
from seeonce.server.options import ServeOptions

FOLDER = Path(questions.__file__).parent
LIMITS = BatchLimits(16, 4, 2048)
EIGHT = [text for number in range(2) for texts in QUESTIONS.values() for text in texts[number : number + 1]][
    :8
]
SCHEMA = {"type": "object", "properties": {"apps": {"type": "string", "maxLength": 20}}, "required": ["apps"]}
NUM_CLIENTS = 16
CLIENTS = Path(__file__).parent / "serve_clients.py"


class Asked:
    """Twenty frames and eight questions, as requests of the engine and as bodies of the API."""

    def __init__(self, encoded: Encoded, max_tokens: int = 80) -> None:
        self.encoded, self.max_tokens = encoded, max_tokens
        frames = list({frame.key: frame for frame in encoded.manifest.frames}.values())[:20]
        self.pairs = [(frame, question) for frame in frames for question in EIGHT]
        self.requests = [
            Request(number, Prompt(question).segments(frame), Sampling(max_tokens=max_tokens))
            for number, (frame, question) in enumerate(self.pairs)
        ]

    def described(self, engine: Engine) -> tuple[list[str], float]:
        began_s = time.perf_counter()
        source = StoredFeatures(self.encoded.store, "demo")
        found = {request.id: answer.text for request, answer in engine.answer(self.requests, source, LIMITS)}
        return [found[request.id] for request in self.requests], time.perf_counter() - began_s

    def bodies(self, **fields: object) -> list[dict[str, Any]]:
        place = f"seeonce:{self.encoded.manifest.recording.id}"
        asks = []
        for frame, question in self.pairs:
            content = [image(f"{place}/{frame.index}"), text(question)]
            messages = [{"role": "user", "content": content}]
            asks.append({"body": {"messages": messages, "max_tokens": self.max_tokens, **fields}})
        return asks


def _clients(api: Served, asks: list[dict[str, Any]]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CLIENTS), f"http://127.0.0.1:{api.port}", str(NUM_CLIENTS)],
        input=json.dumps(asks), capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(prepared(FOLDER / "checkpoint", FOLDER / "recording", tmp_path))


@pytest.fixture
def asked_small(tmp_path: Path) -> Asked:
    """Random weights of `bench --dims small`, and pictures of 160 tokens: steps that tell beside clients."""
    (checkpoint := tmp_path / "checkpoint").mkdir()
    (pictures := tmp_path / "pictures").mkdir()
    for path in sorted((FOLDER / "recording").glob("*.png"))[:24]:
        Image.open(path).resize((512, 320)).save(pictures / path.name)
    return Asked(
        prepared(write_checkpoint(checkpoint, Dims.small), pictures, tmp_path / "home"), max_tokens=40
    )


@pytest.mark.campaign
def test_every_answer_under_load_is_true_and_the_one_that_describe_gives(asked: Asked) -> None:
    engine = Engine.load(asked.encoded.checkpoint, "float32")
    wanted, _ = asked.described(engine)
    truth = read_truth(FOLDER / "recording" / "truth.csv")
    true = [
        answer.strip() == truth[None, Path(frame.source).name, question].text
        for (frame, question), answer in zip(asked.pairs, wanted, strict=True)
    ]
    asks = asked.bodies()
    for number, ((frame, question), one) in enumerate(zip(asked.pairs, asks, strict=True)):
        one["body"]["stream"] = number % 2 == 0
        if number % 3 == 0:
            url = data_url(Path(frame.source).read_bytes())
            one["body"]["messages"][0]["content"] = [image(url), text(question)]
    mixed = [each for number, one in enumerate(asks) for each in (one, _other(number, one["body"]))]
    with served(asked.encoded.store.home.path, ServeOptions(str(FOLDER / "checkpoint"), LIMITS)) as api:
        found = _clients(api, mixed)
        api.wait_until_idle()
    assert found["texts"][::2] == wanted
    assert all(true)
    print(f"{len(wanted)} answers of {NUM_CLIENTS} clients equal to describe's, all true; others in between")


def _other(number: int, body: dict[str, Any]) -> dict[str, Any]:
    """Return an ask of another kind that stands beside: a text, a schema, or a client that leaves."""
    if number % 3 == 0:
        return {"body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}}
    if number % 3 == 1:
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        return {"body": body | {"response_format": schema, "max_tokens": 20}}
    return {"body": body | {"stream": True}, "leaves": True}


# 0.9 is wanted. On two cores that loop and clients share it is 0.7 with the demo's toy, 0.87 with `small`.
@pytest.mark.campaign
@pytest.mark.parametrize(("weights", "least"), [("asked", 0.5), ("asked_small", 0.7)])
def test_sixteen_clients_reach_most_of_what_describe_reaches(
    weights: str, least: float, request: pytest.FixtureRequest
) -> None:
    assert _share_of_describe(request.getfixturevalue(weights), num_rounds=5) > least


def _share_of_describe(asked: Asked, num_rounds: int) -> float:
    """Print what the clients reach, and return the median share of what ``describe`` reaches."""
    checkpoint = asked.encoded.checkpoint
    engine = Engine.load(checkpoint, "float32")
    shares, first, clients_s = list[float](), list[float](), 0.0
    with served(asked.encoded.store.home.path, ServeOptions(str(checkpoint.path), LIMITS)) as api:
        for _ in range(num_rounds):
            wanted, described_s = asked.described(engine)
            before = os.times()
            found = _clients(api, asked.bodies(stream=True))
            clients_s += sum(os.times()[2:4]) - sum(before[2:4])
            assert found["texts"] == wanted
            shares.append(described_s / found["took_s"])
            first += found["first_s"]
        cached, read = api.metric("cached_tokens_total"), api.metric("prompt_tokens_total")
    first.sort()
    print(f"{checkpoint.name}: throughput against describe: {', '.join(f'{share:.2f}' for share in shares)}")
    print(f"time to first words, median {first[len(first) // 2]:.3f} s")
    print(f"{cached / read:.0%} of prompt tokens from shared prefixes")
    print(f"the clients' own processor time {clients_s / num_rounds:.2f} s a round")
    return median(shares)
