"""The passes stay apart: each holds its own half of the weights, and needs nothing of the other's."""

import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import MAX_PIXELS, HomeAfter, MakeCheckpoint, Run
from mlx_vlm.utils import load_model
from screens import folder_of, python
from tiny_checkpoint import Tiny

MB = 1_000_000
MEASURED = """
import gc, sys
import mlx.core as mx

def measure(line):
    from seeonce.commands import main
    from seeonce.verifier import canary
    canary.try_demo = lambda limits: None
    mx.reset_peak_memory()
    code = main.run(main.app, line, error_code=1)
    passes = [name for name in ("precompute.encoder", "infer.engine") if name in sys.modules]
    print("PEAK", code, mx.get_peak_memory(), *passes)

at = sys.argv.index("then")
for line in (sys.argv[1:at], sys.argv[at + 1 :]):
    measure(line)
    from seeonce.packages import PACKAGES
    for name in [name for name in sys.modules if name.partition(".")[0] in {*PACKAGES, "seeonce"}]:
        del sys.modules[name]  # the next command imports what it needs itself
    gc.collect()
"""


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
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, vision_depth=5, vision_hidden=512))


def test_the_checkpoints_would_show_it(much_text: Path, much_vision: Path) -> None:
    for checkpoint in (much_text, much_vision):
        assert _weight_bytes(checkpoint) > 50 * MB
        assert _peak_bytes_here(lambda: load_model(checkpoint)) > 50 * MB  # noqa: B023 - called at once


Passes = list[tuple[int, list[str]]]


@pytest.fixture(scope="module")
def passes(
    much_text: Path, much_vision: Path, home_after: HomeAfter, tmp_path_factory: pytest.TempPathFactory
) -> Passes:
    """MLX's peak in each pass, in a process of their own, and which passes were loaded by then."""
    images = folder_of(tmp_path_factory.mktemp("recordings") / "images")
    home = home_after(("seeonce encode", images, "--model", much_vision))
    one = ("encode", images, "--model", much_text)
    two = ("describe", images, "--model", much_vision, "--max-tokens", 4)
    out, err = python(MEASURED, *one, "then", *two, SEEONCE_HOME=str(home)).communicate(timeout=300)
    found = [line.split()[1:] for line in out.splitlines() if line.startswith("PEAK")]
    assert [code for code, *_ in found] == ["0", "0"], err
    return [(int(peak), loaded) for _, peak, *loaded in found]


def test_pass_one_never_holds_language_weights(passes: Passes) -> None:
    peak, loaded = passes[0]
    assert peak < 25 * MB
    assert loaded == ["precompute.encoder"]


def test_pass_two_never_holds_vision_weights(passes: Passes) -> None:
    peak, loaded = passes[1]
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
