"""Fixtures that several test modules share: tiny checkpoints, written once, and commands run in-process."""

import os

# MLX hands each of a step's 500 small operations to a thread of its own, which costs a quarter of the time
# where the two run on different cores. So a worker of pytest-xdist has one core, and is scheduled in batches.
# Set before a thread starts: they take it over.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

import seeonce  # noqa: F401, I001 - before MLX, which then multiplies with OpenBLAS
import gc
import inspect
import json
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main
from mlx_vlm.models import base
from mlx_vlm.models.qwen3_vl import config
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.home import Home
from infer.canary import Verdict, combination, remember
from infer.engine import Engine
from seeonce.commands import main
from seeonce.verifier import canary, outputs

gc.freeze()  # a million objects of the imports are not looked through again and again

# Typer makes its commands again at each call, which takes as long as many a command.
typer.main.get_command = cache(typer.main.get_command)

# mlx-vlm looks a class's signature up again for each key of a checkpoint's configuration.
for reads_signatures in (base, config):
    reads_signatures.inspect = SimpleNamespace(
        signature=cache(inspect.signature), Parameter=inspect.Parameter
    )

# A store is thousands of small files: they are written in memory where there is room.
IN_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 4 << 30:
    tempfile.tempdir = str(IN_MEMORY)

MAX_PIXELS = 65536  # attention over many patches is slow on a CPU
TEXT_LAYERS = 3  # as many as DeepStack reaches; tests of equality and of verify-cache have one more

MakeCheckpoint = Callable[[Tiny], Path]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]

    @property
    def json(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.out)


Run = Callable[..., Ended]
HomeAfter = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Return a function that writes a checkpoint, or gives what it wrote; do not change those."""
    written: dict[Tiny, Path] = {}

    def make(tiny: Tiny) -> Path:
        if tiny not in written:
            written[tiny] = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny)
        return written[tiny]

    return make


@pytest.fixture(scope="session")
def plain(checkpoint_of: MakeCheckpoint) -> Path:
    """A float32 checkpoint in Hugging Face's layout."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS))


@pytest.fixture(scope="session")
def moe(checkpoint_of: MakeCheckpoint) -> Path:
    """A mixture of experts."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, moe=True))


@pytest.fixture(scope="session")
def qwen3_5(checkpoint_of: MakeCheckpoint) -> Path:
    """No DeepStack, gated delta nets, and a switch for thinking."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, family="qwen3_5"))


@pytest.fixture(scope="session")
def qwen3_5_moe(checkpoint_of: MakeCheckpoint) -> Path:
    """A mixture of experts of the same family."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", moe=True))


@pytest.fixture(scope="session")
def text_4bit(checkpoint_of: MakeCheckpoint) -> Path:
    """The vision tower of ``plain`` with another, quantised language model."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, text_bits=4))


@pytest.fixture(scope="session")
def vision_4bit(checkpoint_of: MakeCheckpoint) -> Path:
    """A vision tower of 4 bits."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, vision_bits=4))


@pytest.fixture(scope="session")
def bfloat16(checkpoint_of: MakeCheckpoint) -> Path:
    """Weights in bfloat16."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, dtype="bfloat16"))


@pytest.fixture(scope="session")
def mlx_layout(checkpoint_of: MakeCheckpoint) -> Path:
    """The weights of ``plain`` as mlx-vlm's own converter lays them out."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, layout="mlx"))


def _leave_canary_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(canary, "try_demo", lambda limits: None)
    patch.setattr(canary, "try_random", lambda limits: None)


def _be_another_user(patch: pytest.MonkeyPatch, root: Path) -> Path:
    """Set an empty SEEONCE_HOME, no network, and none of the user's settings and recordings."""
    settings = ("MODEL", "RECORDINGS", "DTYPE", "PREFIX_CACHE")
    for name in (*(f"SEEONCE_{name}" for name in settings), "ESCRIBANO_DB", "CAP_RECORDINGS"):
        patch.delenv(name, raising=False)
    patch.setenv("HOME", str(root / "user"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("SEEONCE_HOME", str(root / "home"))
    return root / "home"


@pytest.fixture(autouse=True)
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every home is new here, and the canary would be run for each: ``test_canary`` runs it."""
    _leave_canary_out(monkeypatch)


@pytest.fixture(autouse=True, scope="session")
def prefixes_timed_once() -> Iterator[None]:
    """Every home is new here, and how prefixes are best read would be timed for each."""
    time_it, faster = Engine.copies_are_faster, dict[str, bool]()

    def copies_are_faster(engine: Engine) -> bool:
        shape = engine.model.attention_shape
        if shape not in faster:
            faster[shape] = time_it(engine)
        return faster[shape]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "copies_are_faster", copies_are_faster)
        yield


@pytest.fixture(autouse=True, scope="session")
def free_fsync() -> Iterator[None]:
    """What a power cut takes is held against a model of a disk; a real fsync only takes time.

    Processes that tests start do it really.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: os.fstat(fd) and None)
        yield


@pytest.fixture(autouse=True)
def short_answers_to_verify(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Random weights never stop, and a fault must show in a sixteenth of the tokens; the campaign has all."""
    if request.node.get_closest_marker("campaign") is None:
        monkeypatch.setattr(outputs, "_MAX_TOKENS", 4)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SEEONCE_HOME, no network, and none of the user's settings and recordings."""
    return _be_another_user(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def home_after(tmp_path_factory: pytest.TempPathFactory) -> HomeAfter:
    """Return a function that runs command lines in a home of their own, once: copy it, do not change it."""

    @cache
    def made(*lines: tuple[object, ...]) -> Path:
        root = tmp_path_factory.mktemp("made")
        if lines[:-1]:
            shutil.copytree(made(*lines[:-1]), root / "home")
        with pytest.MonkeyPatch.context() as patch:
            _leave_canary_out(patch)
            _be_another_user(patch, root)
            line, *more = lines[-1]
            assert _run_command(str(line), *more) == 0, lines
        remember(Home(root / "home"), combination(), Verdict.batched)  # for processes of their own
        return root / "home"

    return made


@pytest.fixture
def demo(home: Path, home_after: HomeAfter) -> None:
    """The first six frames of the demo, encoded."""
    shutil.copytree(home_after(("seeonce encode demo --limit 6",)), home)


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line as typed, ``seeonce`` or ``verify-cache``, in-process.

    Further arguments are taken as they are, so that paths need no quoting.
    """

    def run_command(line: str, *more: object) -> Ended:
        capsys.readouterr()
        code = _run_command(line, *more)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run_command


def _run_command(line: str, *more: object) -> int:
    program, *words = shlex.split(line)
    app, error_code = {"seeonce": (main.app, 1), "verify-cache": (main.verify_app, 2)}[program]
    return main.run(app, [*words, *map(str, more)], error_code=error_code)


@pytest.fixture
def times_encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """What went through the encoder, by its patches, and how often."""
    from precompute.encoder import VisionEncoder

    counts: Counter[bytes] = Counter()
    start = VisionEncoder.start

    def counting(self: VisionEncoder, patches: object) -> object:
        counts[patches.pixels.tobytes()] += 1  # type: ignore[attr-defined]
        return start(self, patches)  # type: ignore[arg-type]

    monkeypatch.setattr(VisionEncoder, "start", counting)
    return counts
