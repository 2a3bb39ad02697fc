"""The passes stay apart: each holds its own half of the weights, and needs nothing of the other's."""

import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import MAX_PIXELS, MakeCheckpoint, Run
from mlx_vlm import load
from screens import folder_of, python
from tiny_checkpoint import Tiny

MB = 1_000_000
MEASURED = """
import sys
from seeonce.commands import main
from seeonce.verifier import canary
canary.try_demo = lambda limits: None
code = main.run(main.app, sys.argv[1:], error_code=1)
import mlx.core as mx
passes = [name for name in ("precompute.encoder", "infer.engine") if name in sys.modules]
print("PEAK", code, mx.get_peak_memory(), *passes)
"""


def _peak_bytes(*arguments: object) -> tuple[int, list[str]]:
    """Run a command in a process of its own; return MLX's peak and which pass was loaded."""
    out, err = python(MEASURED, *arguments).communicate(timeout=300)
    assert "PEAK 0" in out, err
    peak, *loaded = out.splitlines()[-1].split()[2:]
    return int(peak), loaded


def _peak_bytes_here(work: Callable[[], object]) -> int:
    """Return what MLX held at most in this process, beside what it holds already."""
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    return mx.get_peak_memory() - before


def _weight_bytes(checkpoint: Path) -> int:
    return (checkpoint / "model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def much_text(checkpoint_of: MakeCheckpoint) -> Path:
    """A checkpoint whose language half is nearly all of it."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=20, hidden=1024))


@pytest.fixture(scope="module")
def much_vision(checkpoint_of: MakeCheckpoint) -> Path:
    """A checkpoint whose vision half is nearly all of it."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, vision_depth=8, vision_hidden=512))


def test_the_checkpoints_would_show_it(much_text: Path, much_vision: Path) -> None:
    for checkpoint in (much_text, much_vision):
        assert _weight_bytes(checkpoint) > 50 * MB
        assert _peak_bytes_here(lambda: load(str(checkpoint))) > 50 * MB  # noqa: B023 - called at once


def test_pass_one_never_holds_language_weights(home: Path, much_text: Path, tmp_path: Path) -> None:
    peak, loaded = _peak_bytes("encode", folder_of(tmp_path / "images"), "--model", much_text)
    assert peak < 25 * MB
    assert loaded == ["precompute.encoder"]


def test_pass_two_never_holds_vision_weights(run: Run, home: Path, much_vision: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", much_vision).code == 0
    line = ("describe", images, "--model", much_vision, "--max-tokens", 4)
    peak, loaded = _peak_bytes(*line)
    assert peak < 25 * MB
    assert loaded == ["infer.engine"]


def test_asking_who_the_encoder_is_holds_one_tensor_at_a_time(
    run: Run, home: Path, much_vision: Path, tmp_path: Path
) -> None:
    images = folder_of(tmp_path / "images")
    assert run("seeonce encode", images, "--model", much_vision).code == 0
    for file in (home / "store" / "index").iterdir():
        file.unlink()  # what was remembered of the encoder is forgotten
    line = ("seeonce describe --max-tokens 4", images, "--model", much_vision)
    assert _peak_bytes_here(lambda: run(*line)) < 45 * MB
    assert (home / "runs").is_dir()


def test_the_front_door_loads_neither_pass(home: Path) -> None:
    slow = ["mlx", "mlx_vlm", "zarr", "transformers", "huggingface_hub", "PIL", "av", "precompute.encoder"]
    program = f"import sys, seeonce\nprint('LOADED', *(name for name in {slow} if name in sys.modules))"
    out, err = python(program).communicate(timeout=300)
    assert out.split() == ["LOADED"], err
