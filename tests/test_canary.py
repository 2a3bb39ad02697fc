"""The canary: a trial on combinations not seen before, its fallback, and its refusal."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run
from live_mlx_vlm import once_for_each_checkpoint
from screens import folder_of

from cache.base.errors import CheckpointError
from cache.base.home import Home
from infer import canary
from infer.canary import (
    Combination,
    Trial,
    Verdict,
    combination,
    one_by_one,
    remember,
    remembered,
    sound_limits,
)
from infer.kv_cache import RowsRecurrentState
from infer.limits import BatchLimits
from infer.model import DenseDeepstackModel
from seeonce.verifier.canary import try_demo as real_trial
from seeonce.verifier.canary import try_random as real_trial_of_delta_nets
from seeonce.verifier.reference import LiveReference

ASKED = BatchLimits(16, 8, 512, kv_memory_bytes=10**9)
NEW = Combination(("mlx 9.9", "mlx-vlm 9.9"), "a machine", "")


class Tried:
    """A trial that fails under sharing, under everything, or never."""

    def __init__(self, *, batched: str | None = None, alone: str | None = None) -> None:
        self._batched, self._alone = batched, alone
        self.limits: list[BatchLimits] = []

    def __call__(self, limits: BatchLimits) -> str | None:
        self.limits.append(limits)
        return self._batched if limits.share_prefixes else self._alone


@pytest.fixture
def here(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def live_answers() -> Iterator[None]:
    """What live encoding answers does not depend on limits and faults of ours: it is computed once.

    In five tokens: random weights never stop, and faults show at once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seeonce.verifier.canary._MAX_TOKENS", 5)
        for name in ("features", "answer"):
            patch.setattr(LiveReference, name, once_for_each_checkpoint(getattr(LiveReference, name)))
        yield


def _sound(here: Home, trial: Trial) -> tuple[BatchLimits, list[str]]:
    said: list[str] = []
    return sound_limits(here, ASKED, trial, said.append), said


def test_a_new_combination_is_tried_once(here: Home) -> None:
    trial = Tried()
    limits, said = _sound(here, trial)
    assert (limits, len(said), len(trial.limits)) == (ASKED, 1, 1)
    assert _sound(here, trial) == (ASKED, [])
    assert len(trial.limits) == 1


def test_wrong_batches_make_it_prefill_one_by_one_for_good(here: Home) -> None:
    limits, said = _sound(here, Tried(batched="answer 3 differs"))
    assert limits == one_by_one(ASKED)
    assert (limits.prefill_batch_size, limits.share_prefixes) == (1, False)
    assert limits.prefill_step_size > 10**6
    assert limits.kv_memory_bytes == ASKED.kv_memory_bytes
    assert "answer 3 differs" in said[1]
    assert _sound(here, Tried()) == (one_by_one(ASKED), [])


def test_wrong_answers_either_way_are_refused_with_versions_that_work(here: Home) -> None:
    with pytest.raises(CheckpointError, match=r"install mlx 0\.32\.4 with mlx-vlm 0\.7\.10"):
        _sound(here, Tried(batched="answer 3 differs", alone="answer 1 differs"))
    assert remembered(here, combination()) is None


def test_a_trial_that_breaks_has_failed(here: Home) -> None:
    def breaks(limits: BatchLimits) -> str | None:
        if limits.share_prefixes:
            raise TypeError("got an unexpected keyword argument")
        return None

    limits, said = _sound(here, breaks)
    assert limits == one_by_one(ASKED)
    assert "TypeError: got an unexpected keyword argument" in said[1]


@pytest.mark.parametrize("changed", ["versions", "device", "dtype", "engine_epoch", "layers"])
def test_each_part_of_a_combination_counts(here: Home, changed: str) -> None:
    remember(here, NEW, Verdict.batched)
    other = {
        "versions": ("mlx 9.9", "mlx-vlm 9.10"),
        "device": "another",
        "dtype": "bfloat16",
        "engine_epoch": 99,
        "layers": "gated delta nets",
    }
    parts = {name: getattr(NEW, name) for name in other}
    assert remembered(here, NEW) is Verdict.batched
    assert remembered(here, Combination(**parts | {changed: other[changed]})) is None


def test_a_damaged_memory_costs_a_trial(here: Home) -> None:
    (here.path / "canary.json").write_text('[{"combination": 3}, 7')
    assert _sound(here, Tried()) == (ASKED, [_sound_line()])
    assert len(json.loads((here.path / "canary.json").read_text())) == 1


def _sound_line() -> str:
    return f"First run with {combination()}: a short trial against live encoding."


def test_looking_it_up_loads_no_mlx() -> None:
    from screens import python

    program = "import sys, infer.canary\ninfer.canary.combination()\nprint('LOADED', 'mlx' in sys.modules)"
    out, err = python(program).communicate(timeout=60)
    assert out.split() == ["LOADED", "False"], err


def test_the_trial_passes_here() -> None:
    assert real_trial(canary.BATCHED_TRIAL) is None
    assert real_trial(one_by_one(canary.BATCHED_TRIAL)) is None


def test_the_trial_of_gated_delta_nets_passes_here_and_fails_when_padding_gets_into_their_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert real_trial_of_delta_nets(canary.BATCHED_TRIAL) is None
    monkeypatch.setattr(RowsRecurrentState, "make_mask", lambda self, num_columns: None)
    assert "differs" in str(real_trial_of_delta_nets(canary.BATCHED_TRIAL))


@pytest.mark.campaign
def test_the_trial_of_gated_delta_nets_passes_here_one_by_one() -> None:
    assert real_trial_of_delta_nets(one_by_one(canary.BATCHED_TRIAL)) is None


def test_a_model_with_gated_delta_nets_is_tried_as_such(
    run: Run, home: Path, qwen3_5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", qwen3_5).code == 0
    tried = Tried()
    monkeypatch.setattr("seeonce.verifier.canary.try_random", tried)
    for _ in range(2):
        assert run("seeonce describe --max-tokens 3", images, "--model", qwen3_5).code == 0
    assert len(tried.limits) == 1
    assert "gated delta nets" in (home / "canary.json").read_text()


def test_the_trial_fails_when_deepstack_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DenseDeepstackModel.hidden
    monkeypatch.setattr(
        DenseDeepstackModel,
        "hidden",
        lambda self, h, cache, position_ids, deepstack=None, **more: whole(
            self, h, cache, position_ids, **more
        ),
    )
    assert "differs" in str(real_trial(canary.BATCHED_TRIAL))


def test_describe_runs_under_what_the_canary_found(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", plain).code == 0
    monkeypatch.setattr("seeonce.verifier.canary.try_demo", Tried(batched="answer 3 differs"))
    ended = run("seeonce describe --max-tokens 3 --json", images, "--model", plain)
    assert (ended.code, ended.json["limits"]["prefill_batch_size"]) == (0, 1)
    assert "prefilled one by one" in ended.err
    assert sys.modules["mlx"] is not None


@pytest.mark.parametrize("line", ["nowhere", "{images} --model /no/such/model"])
def test_what_cannot_be_described_is_refused_before_a_trial(
    line: str, run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder_of(tmp_path / "images", 1)
    assert run("seeonce encode", images, "--model", plain).code == 0
    monkeypatch.setattr("infer.canary.remembered", lambda *_: pytest.fail("a trial would begin"))
    ended = run("seeonce describe --prompt x", *line.format(images=images).split())
    assert (ended.code, "First run" in ended.err) == (1, False)
