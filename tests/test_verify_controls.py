"""Controls through the public command: each fault put into a copy is objected to."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MAX_PIXELS, HomeAfter, MakeCheckpoint, Run
from live_mlx_vlm import draw_noise
from store_samples import manifest, new_store
from tiny_checkpoint import Tiny

from cache.base.errors import EXIT_INTERRUPTED, InputError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.manifest import write_manifest
from seeonce.verifier import levels, verify
from seeonce.verifier.faults import FAULTS, CopiedStore, Fault, copy_again
from seeonce.verifier.levels import VerifyOptions
from seeonce.verifier.report import Report

CHECKPOINTS = {
    "plain": Tiny(max_pixels=MAX_PIXELS),
    "moe": Tiny(max_pixels=MAX_PIXELS, moe=True),
    "text4": Tiny(max_pixels=MAX_PIXELS, text_bits=4),
    "vision8": Tiny(max_pixels=MAX_PIXELS, vision_bits=8),
    "mlx": Tiny(max_pixels=MAX_PIXELS, layout="mlx"),
    "bfloat16": Tiny(max_pixels=MAX_PIXELS, dtype="bfloat16"),
    "qwen3_5": Tiny(max_pixels=MAX_PIXELS, family="qwen3_5"),
}
ALWAYS = [("plain", "float32")]
CAMPAIGN = [(name, dtype) for name in CHECKPOINTS for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures; the first and the last are of one size."""
    return draw_noise(tmp_path_factory.mktemp("recordings") / "images", 4, num_sizes=3)


@pytest.mark.parametrize(
    ("name", "dtype", "level"),
    [
        *((name, dtype, "embeddings") for name, dtype in ALWAYS),
        # MLX's CPU backend multiplies experts in float32 alone: no answers of a MoE in bfloat16.
        *(
            pytest.param(*case, level, marks=pytest.mark.campaign)
            for case in CAMPAIGN
            for level in ["embeddings" if case == ("moe", "bfloat16") else "outputs"]
        ),
    ],
)
def test_every_control_is_caught(
    name: str, dtype: str, level: str, run: Run, images: Path, checkpoint_of: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SEEONCE_DTYPE", dtype)
    checkpoint = checkpoint_of(CHECKPOINTS[name])
    assert run("seeonce encode", images, "--model", checkpoint).code == 0
    ended = run(f"verify-cache --controls --sample all --json --level {level}", images, "--model", checkpoint)
    results = ended.json["controls"]
    missing = ["DeepStack zeroed", "DeepStack layers swapped"] if name == "qwen3_5" else []
    assert [result["name"] for result in results if not (result["applied"] and result["caught"])] == missing
    assert (ended.code, len(results)) == (0, len(FAULTS) + 2)
    by = {result["name"]: result["caught_by"] for result in results}
    assert by["one bit flipped in a payload"] == ["bytes"]
    assert by["weights changed under the same name"][:2] == ["encoder id", "embeddings"]


@pytest.mark.campaign
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(4))
def test_every_control_is_caught_on_the_demo(
    dtype: str, seed: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_DTYPE", dtype)
    assert run("seeonce encode demo").code == 0
    ended = run(f"verify-cache demo --controls --seed {seed} --json")
    print(dtype, seed, {result["name"]: result["caught_by"] for result in ended.json["controls"]})
    assert (ended.code, all(result["caught"] for result in ended.json["controls"])) == (0, True)


@pytest.fixture
def encoded(home: Path, home_after: HomeAfter, images: Path, plain: Path) -> Path:
    shutil.copytree(home_after(("seeonce encode", images, "--model", plain)), home)
    return images


def test_a_fault_leaves_the_copy_that_it_was_put_into_a_copy_of(tmp_path: Path) -> None:
    store = new_store(tmp_path / "unchanged")
    path = write_manifest(store.home, whole := manifest(2))
    before = path.read_bytes()
    unchanged = CopiedStore(store.home, store, whole, [[frame] for frame in whole.frames])
    copy_again(unchanged, tmp_path / "copy").put_manifest(replace(whole, frames=whole.frames[:1]))
    assert path.read_bytes() == before


def test_a_verifier_that_does_not_object_is_told_on(
    run: Run, encoded: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = Fault("nothing at all", FAULTS[0].level, lambda copy, rng: "nowhere")
    monkeypatch.setattr(verify, "FAULTS", (harmless,))
    ended = run("verify-cache --controls --level embeddings --sample 2", encoded, "--model", plain)
    assert ended.code == 1
    assert "NOT CAUGHT  nothing at all: nowhere; objected: nobody" in ended.out
    assert "the controls FAILED" in ended.out


def test_controls_leave_the_store_and_nothing_else(
    run: Run, encoded: Path, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = {path: path.read_bytes() for path in home.rglob("c.0.0.0")}
    assert run("verify-cache --controls --level bytes", encoded, "--model", plain).code == 0
    assert {path: path.read_bytes() for path in home.rglob("c.0.0.0")} == before
    assert list((tmp_path / "temporary").iterdir()) == []


def test_controls_that_are_terminated_leave_nothing_behind(
    run: Run, encoded: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(home: Home, options: VerifyOptions, listener: Listener) -> Report:
        if list((tmp_path / "temporary").iterdir()):  # a copy is checked, and not the recording itself
            os.kill(os.getpid(), signal.SIGTERM)
        return Report("images", "bytes", equal=True, complete=True, checks=())

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(verify, "check_recording", terminated)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert run("verify-cache --controls --level bytes", encoded, "--model", plain).code == EXIT_INTERRUPTED
    assert list((tmp_path / "temporary").iterdir()) == []
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_IGN


def test_one_entry_alone_has_nothing_to_be_swapped_with(run: Run, tmp_path: Path, plain: Path) -> None:
    folder = draw_noise(tmp_path / "one", 1)
    assert run("seeonce encode", folder, "--model", plain).code == 0
    ended = run("verify-cache --controls --level embeddings --json", folder, "--model", plain)
    left = {result["name"]: result["words"] for result in ended.json["controls"] if not result["applied"]}
    assert ended.code == 0
    assert left["two frames' entries swapped"] == "no two entries of one size are in the sample"
    assert left["manifest names the wrong key"] == "there is one entry only"


def test_controls_take_entries_of_the_sample_alone(run: Run, encoded: Path, plain: Path) -> None:
    ended = run("verify-cache --controls --level bytes --sample 1 --json", encoded, "--model", plain)
    left = {result["name"]: result["words"] for result in ended.json["controls"] if not result["applied"]}
    assert (ended.code, left["manifest names the wrong key"]) == (0, "there is one entry only")


def test_a_store_that_differs_has_no_controls(run: Run, encoded: Path, home: Path, plain: Path) -> None:
    chunk = next(home.rglob("c.0.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    ended = run("verify-cache --controls --level bytes", encoded, "--model", plain)
    assert ended.code == 1
    assert "the store itself differs" in ended.out


def test_an_unchanged_copy_that_does_not_pass_makes_controls_void(
    run: Run, encoded: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = levels.check_recording

    def broken_copy(home: Home, options: VerifyOptions, listener: Listener) -> Report:
        if options.controls:
            return right(home, options, listener)
        raise InputError("no such thing")

    monkeypatch.setattr(verify, "check_recording", broken_copy)
    ended = run("verify-cache --controls --level bytes", encoded, "--model", plain)
    assert ended.code == 1
    assert "the unchanged copy does not pass (exit code 2): error: no such thing" in ended.out
