"""What stands around the engine works for each family alike: runs, sampling, schemas, verify-cache."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked_live import Asked
from conftest import MAX_PIXELS, Ended, HomeAfter, MakeCheckpoint, Run
from live_mlx_vlm import draw_noise
from tiny_checkpoint import Tiny

from infer.canary import one_by_one
from infer.limits import BatchLimits
from infer.sampling import Sampling
from infer.sequence import sampling_hooks

CHECKPOINTS = {
    "qwen3_5": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5"),
    "qwen3_5 moe": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", moe=True),
    "qwen3_5 text4": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", text_bits=4),
}
SCHEMA = {
    "type": "object",
    "properties": {"busy": {"type": "boolean"}},
    "required": ["busy"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("recordings") / "images", 6)


@pytest.fixture
def encoded(home_after: HomeAfter, images: Path, qwen3_5: Path, home: Path) -> str:
    """Six pictures under a Qwen3.5: what a command line ends with."""
    shutil.copytree(home_after(("seeonce encode", images, "--model", qwen3_5)), home)
    return f"{images} --model {qwen3_5}"


def _lines(ended: Ended) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (Path(ended.json["path"]) / "results.jsonl").read_text().splitlines()
    ]


def test_an_entry_without_deepstack_is_one_layer(run: Run, encoded: str, home: Path) -> None:
    (row,) = run("seeonce store stats --json").json["encoders"]
    assert row["label"].startswith("qwen3_5 4x64")
    entries = [json.loads(path.read_text()) for path in sorted(home.glob("store/frames/*/*/zarr.json"))]
    assert {entry["shape"][0] for entry in entries} == {1}
    assert len(entries) == 6


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_5",
        *(pytest.param(name, marks=pytest.mark.campaign) for name in CHECKPOINTS if name != "qwen3_5"),
    ],
)
def test_sampled_answers_do_not_depend_on_their_neighbours(
    name: str, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    asked = Asked(checkpoint_of(CHECKPOINTS[name]), tmp_path, 2)
    sampling = Sampling(temperature=0.8, seed=7, max_tokens=4)
    questions = [replace(request, sampling=sampling) for request in asked.questions(3)]
    limits = BatchLimits(8, 4, 33)
    together = asked.run(questions, limits, sampling_hooks).tokens(questions)
    assert together == asked.run(questions, one_by_one(limits), sampling_hooks).tokens(questions)


def test_several_frames_a_prompt_under_a_schema_and_stopped_runs_go_on(
    run: Run, encoded: str, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    line = f"seeonce describe --json --max-tokens 200 --prompt What? --schema {schema} {encoded}"
    whole = run(line)
    assert {line["parsed"]["busy"] for line in _lines(whole)} <= {True, False}
    grouped = run(f"{line} --frames-per-prompt 3")
    assert (grouped.code, [line["frame"] for line in _lines(grouped)]) == (0, [0, 1, 2, 3, 4, 5])
    folder = Path(whole.json["path"])
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:2]))
    info = json.loads((folder / "run.json").read_text()) | {"status": "interrupted"}
    (folder / "run.json").write_text(json.dumps(info))
    assert run("seeonce describe --resume", folder.name).code == 0
    assert (folder / "results.jsonl").read_text() == "".join(lines)


def test_verify_cache_finds_it_equal_at_every_level(run: Run, encoded: str) -> None:
    ended = run(f"verify-cache --json --sample 1 {encoded}")
    assert (ended.code, [check["equal"] for check in ended.json["checks"]]) == (0, [True, True, True])
