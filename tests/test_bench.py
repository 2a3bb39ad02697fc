"""The benchmark: it measures in turn, marks wrong answers wrong, and says what it left out."""

import errno
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from cache.base.errors import InputError
from cache.base.home import Home
from cache.manifest import list_manifests
from cache.store import Durability
from cache.thumbnails import Thumbnails
from checkpoint.config import read_checkpoint
from checkpoint.loading import load_model
from infer.engine import Engine
from infer.limits import BatchLimits
from infer.model import LanguageModel, PromptInputs
from infer.request import Answer, Request, Usage
from infer.sequence import Sequence
from infer.tokenizer import PromptTokens
from seeonce.bench import decoding, passes, profiling, random_weights, resolution, stand_in, suite
from seeonce.bench.judge import (
    Judgement,
    ReferenceAnswer,
    judge_text,
    judge_tokens,
    num_about_another_frame,
)
from seeonce.bench.measure import Clock, Measured, quantile
from seeonce.bench.options import QUICK, Dims
from seeonce.bench.passes import QUESTIONS, Ask, Encoded, Model, PassTwo, draw_frames, encode_frames
from seeonce.bench.prompt_experiment import PromptExperiment
from seeonce.bench.report import Machine, Outcome, Report, Table


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Two small screens under the demo checkpoint."""
    folder = tmp_path_factory.mktemp("bench")
    home = Home(folder / "home")
    return encode_frames(Model.open("demo", home), draw_frames(folder / "frames", 2, (256, 160)), home)


def test_all_ways_run_in_turn_and_neither_the_warm_up_nor_cleaning_is_timed() -> None:
    order: list[str] = []
    ways = {name: partial(order.append, name) for name in "ab"}
    found = Clock(num_repetitions=2).alternate(ways, clean=lambda: order.append("c"))
    assert order == ["a", "b", "c"] * 3
    assert [len(measured.seconds) for measured in found] == [2, 2]


def test_every_repetition_is_told() -> None:
    told: list[str] = []
    Clock(2, told.append).alternate({"work": lambda: None})
    assert [line.split(",")[0] for line in told] == ["  warm-up: work", "  1 of 2: work", "  2 of 2: work"]


def test_what_is_measured_is_its_median_its_quantiles_and_how_far_apart_the_ends_are() -> None:
    found = Measured("work", (1.0, 9.0, 2.0), None)
    assert (found.median_s, found.spread) == (2, 4)
    assert [quantile(found.seconds, share) for share in (0.0, 0.5, 1.0)] == [1, 2, 9]


def test_a_table_is_markdown_for_a_person_and_rows_by_column_for_machines() -> None:
    table = Table("x", "Title", ("a", "b"), ((1_000, 0.12345), ("p|q\nr", None)), ("Left out: c.",))
    assert "| 1,000 | 0.123 |" in table.as_markdown()
    assert "| p\\|q r | – |" in table.as_markdown()
    assert table.as_json()["rows"] == [{"a": 1_000, "b": 0.12345}, {"a": "p|q\nr", "b": None}]


@pytest.mark.parametrize(
    ("times", "num_matching", "num_about_another", "num_failed", "word"),
    [
        (3.0, 10, 0, 0, "strong"),
        (2.9, 8, 0, 0, "yes"),
        (1.5, 10, 0, 0, "marginal"),
        (1.4, 10, 0, 0, "no gain"),
        (9.0, 7, 0, 0, "answers differ"),
        (9.0, 9, 1, 0, "answers differ"),
        (9.0, 9, 0, 1, "answers differ"),
    ],
)
def test_a_verdict_needs_speed_and_the_same_answers(
    times: float, num_matching: int, num_about_another: int, num_failed: int, word: str
) -> None:
    outcome = Outcome("work", "other", times, 10, num_matching, num_about_another, num_failed)
    assert outcome.word == word
    assert outcome.sentence().startswith(f"{word}: {times:.2f} times as fast")


def test_another_token_is_a_near_tie_only_where_the_winner_won_by_little() -> None:
    right = ReferenceAnswer((5, 6, 7), (2.0, 0.1, 2.0, 2.0))
    assert judge_tokens((5, 6, 7), right, "bfloat16") is Judgement.right
    assert judge_tokens((5, 9, 7), right, "bfloat16") is Judgement.near_tie
    assert judge_tokens((5, 9, 7), right, "float32") is Judgement.wrong
    assert judge_tokens((5, 6, 9), right, "bfloat16") is Judgement.wrong
    assert judge_tokens((5, 6), right, "bfloat16") is Judgement.wrong


def test_a_text_is_judged_at_the_token_where_it_parts() -> None:
    right = ReferenceAnswer((0, 1, 2), (2.0, 0.1, 2.0))
    words = ["a ", "tall ", "tree"]
    judge = partial(
        judge_text, reference=right, dtype="bfloat16", decode=lambda ids: "".join(words[i] for i in ids)
    )
    assert judge("a tall tree ") is Judgement.right
    assert judge("a tiny bird") is Judgement.near_tie
    assert judge("a tall bird") is Judgement.wrong


def test_an_answer_of_another_frame_counts_when_only_that_frame_has_it() -> None:
    asks = [Ask(Path(name), "What?") for name in "abcd"]
    right = ["a red car", "a long river", "two people at a desk", "two people at a desk"]
    said = ["a long river", "a long river", "nothing", "two people at a desk"]
    assert num_about_another_frame(asks, said, right) == 1
    assert (
        num_about_another_frame(asks[:1] + asks[2:], ["two people at a desk"] * 3, right[:1] + right[2:]) == 0
    )


def test_a_scratch_folder_without_room_is_an_error_of_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(passes, "draw_frames", full)
    ended = run("seeonce bench --quick --model demo")
    assert ended.code == 1
    assert ended.error.endswith("No space left on device): set TMPDIR to a folder with more room.")


def test_ctrl_c_in_pass_one_ends_the_benchmark_instead_of_measuring_a_part(
    encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    encoder = encoded.model.encoder()
    monkeypatch.setattr(encoder, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_frames(encoded.model, encoded.images, Home(tmp_path), encoder)


def test_what_is_measured_of_pass_one_leaves_what_seeonce_encode_leaves(encoded: Encoded) -> None:
    home = encoded.store.home
    (ref,) = list_manifests(home)
    assert ref.num_frames == 2
    assert encoded.store.durability is Durability.batch
    assert all(Thumbnails(home).has(frame.pixels) for frame in encoded.manifest.frames)


def test_a_wrong_number_is_not_about_the_one_frame_that_has_it() -> None:
    asks = [Ask(Path(name), "How many?") for name in "abc"]
    assert num_about_another_frame(asks, ["5", "3", "5"], ["3", "3", "5"]) == 0


def test_one_wrong_answer_under_the_same_weights_is_enough_for_the_verdict() -> None:
    outcome = Outcome("work", "other", 9.0, 10, 10, 0, 0, num_wrong=1)
    assert outcome.word == "answers differ"
    assert "1 of ours are wrong" in outcome.sentence()


def test_a_fault_that_leaves_the_first_token_is_seen_at_every_size(
    encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = LanguageModel.inputs

    def without_deepstack(*arguments: Any) -> PromptInputs:
        made = inputs(*arguments)
        return replace(made, deepstack=made.deepstack * 0)

    monkeypatch.setattr(LanguageModel, "inputs", without_deepstack)
    (table,) = resolution.measure(encoded.model, tmp_path, budget_s=0.0, clock=Clock(1))
    assert [row[-1] for row in table.rows] == ["wrong"]


def test_answers_from_the_store_are_those_of_live_and_batch_generate_is_marked_wrong(
    encoded: Encoded, tmp_path: Path
) -> None:
    (table,) = PromptExperiment(encoded, tmp_path, (2,), 4, 4, Clock(1, num_warm_ups=0)).measure()
    wrong = {str(row[1]): row[-1] for row in table.rows}
    assert [wrong[name] for name in wrong if name.startswith("seeonce")] == [0, 0, 0]
    assert wrong["mlx-vlm live, batch_generate"] != 0
    assert "K·(V + P + s + d)" in table.remarks[1]
    assert table.outcome is not None
    assert (table.outcome.num_matching, table.outcome.num_about_another_frame) == (4, 0)
    assert table.outcome.num_wrong == 0


def test_tokens_from_the_store_are_right_at_every_level_and_batch_generator_loses_deepstack(
    encoded: Encoded,
) -> None:
    (table,) = decoding.measure(encoded, (1, 6), max_tokens=3, clock=Clock(1, num_warm_ups=0))
    wrong = {(row[0], row[1]): row[-1] for row in table.rows}
    assert [number for (_, path), number in wrong.items() if str(path).startswith("seeonce")] == [0] * 4
    assert wrong[1, "mlx-vlm BatchGenerator"] == 0
    assert wrong[6, "mlx-vlm BatchGenerator"] != 0


def test_sizes_that_would_take_too_long_are_left_out_by_name(encoded: Encoded, tmp_path: Path) -> None:
    (table,) = resolution.measure(encoded.model, tmp_path, budget_s=0.0, clock=Clock(1))
    assert [(row[0], row[-1]) for row in table.rows] == [("224x224", "right")]
    assert "1920x1080" in table.remarks[-1]


def test_pass_one_is_held_against_the_bare_tower_and_what_was_measured_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "_PICTURES_A_SECOND", 2)
    monkeypatch.setattr(suite, "_PASS_ONE_SIZE", (256, 160))
    little = replace(QUICK, num_idle=6, num_pass_one_frames=2, num_repetitions=1, num_screens=1)
    monkeypatch.setattr(suite, "QUICK", little)
    output = tmp_path / "bench.json"
    ended = run("seeonce bench --quick --model demo --only pass-one --output", output, "--json")
    assert ended.code == 0, ended.err
    kept = json.loads(output.read_text())
    assert ended.json == kept
    rows = {row["path"]: row for row in kept["tables"][0]["rows"]}
    assert rows["pass one"]["unlike the tower's"] == 0
    assert rows["pass one, nothing to do"]["frames"] == 6
    assert kept["not_measured"] == 0


def test_random_weights_that_do_not_fit_on_the_disk_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(InputError, match=r"take \d+\.\d GB.*1\.0 GB free: set TMPDIR"):
        random_weights.write_checkpoint(tmp_path / "checkpoint", Dims.qwen3_vl_2b)
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()


def test_dims_and_a_model_exclude_each_other(run: Run) -> None:
    ended = run("seeonce bench --quick --dims small --model demo")
    assert ended.code == 1
    assert ended.err == "error: --dims and --model exclude each other: give random weights or a checkpoint.\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--endpoint-model m", "--endpoint-model names a model of a server: give --endpoint, too."),
        ("--endpoint localhost:1", "--endpoint localhost:1 is no address: give one as http://localhost:8000"),
        (
            "--endpoint http://host:99999",
            "--endpoint http://host:99999 is no address: give one as http://localhost:8000",
        ),
        ("--endpoint-timeout inf", "--endpoint-timeout is inf; expected a number of seconds, as 300"),
        ("--output -", "--output - is no file: name one, as in --output ./-"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_one_line(run: Run, options: str, error: str) -> None:
    ended = run(f"seeonce bench --quick {options}")
    assert (ended.code, ended.err) == (1, f"error: {error}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_report_for_which_there_is_no_room_is_an_error_of_one_line() -> None:
    report = Report("demo", Machine("", 1, 1, "", "", ()), datetime.now(UTC))
    with pytest.raises(InputError, match=r"^--output /dev/full cannot be written \(.*No space left"):
        report.write(Path("/dev/full"))


def test_a_latency_begins_when_a_client_would_have_sent_the_request(
    encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = encoded.requests(QUESTIONS[:2], 4)[:3]

    def prefilled_late(
        _: Engine, asked: list[Request], *__: Any, hooks_of: Any, **___: Any
    ) -> Iterator[tuple[Request, Answer]]:
        for request in asked:
            time.sleep(0.05)
            hooks_of(Sequence(request, PromptTokens((), ())))
            yield request, Answer("", "stop", Usage(0, 0))

    monkeypatch.setattr(Engine, "answer", prefilled_late)
    _, (first, second, third) = PassTwo(encoded).answers(requests, BatchLimits(max_num_seqs=2), frozenset())
    assert 0.05 <= first < second
    assert second >= 0.1
    assert third >= 0.1


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path
) -> None:
    ended = run("seeonce bench --quick --output", tmp_path / "none" / "bench.md")
    assert ended.code == 1
    assert ended.error.endswith("cannot be written: name a file in a folder that exists.")


def test_a_profile_tells_functions_of_one_name_apart(encoded: Encoded, tmp_path: Path) -> None:
    (table,) = profiling.measure(encoded.model, encoded.images, tmp_path, max_tokens=4)
    functions = [str(row[1]).split()[-1] for row in table.rows]
    assert "VisionEncoder.start" in functions[:2]
    assert "Prefill.step" in functions


def test_random_weights_of_qwen3_5_are_a_checkpoint_with_the_published_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = random_weights.SHAPES[Dims.qwen3_5_0_8b]
    small = replace(whole, text=(4, 64, 96, 2), vision=(2, 64, 96, 2), vocabulary=768, head_dim=32)
    monkeypatch.setitem(random_weights.SHAPES, Dims.qwen3_5_0_8b, small)
    path = random_weights.write_checkpoint(tmp_path / "checkpoint", Dims.qwen3_5_0_8b)
    checkpoint = read_checkpoint(path)
    assert [layer.is_recurrent for layer in checkpoint.text.layers] == [True, True, True, False]
    model = load_model(checkpoint).language_model
    assert str(model.model.layers[0].linear_attn.A_log.dtype) == "mlx.core.float32"
