"""Fixtures that several test modules share: tiny checkpoints, written once, and commands run in-process."""

import seeonce  # noqa: F401, I001 - before MLX, which then multiplies with OpenBLAS
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tiny_checkpoint import Tiny, write_checkpoint

from seeonce.commands import main
from seeonce.verifier import canary

# Typer makes its commands again at each call, which takes as long as many a command.
typer.main.get_command = cache(typer.main.get_command)

MAX_PIXELS = 65536  # attention over many patches is slow on a CPU

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
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS))


@pytest.fixture(scope="session")
def moe(checkpoint_of: MakeCheckpoint) -> Path:
    """A mixture of experts."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, moe=True))


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
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_bits=4))


@pytest.fixture(scope="session")
def vision_4bit(checkpoint_of: MakeCheckpoint) -> Path:
    """A vision tower of 4 bits."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, vision_bits=4))


@pytest.fixture(scope="session")
def bfloat16(checkpoint_of: MakeCheckpoint) -> Path:
    """Weights in bfloat16."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, dtype="bfloat16"))


@pytest.fixture(scope="session")
def mlx_layout(checkpoint_of: MakeCheckpoint) -> Path:
    """The weights of ``plain`` as mlx-vlm's own converter lays them out."""
    return checkpoint_of(Tiny(max_pixels=MAX_PIXELS, layout="mlx"))


@pytest.fixture(autouse=True)
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every home is new here, and the canary would be run for each: ``test_canary`` runs it."""
    monkeypatch.setattr(canary, "try_demo", lambda limits: None)
    monkeypatch.setattr(canary, "try_random", lambda limits: None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SEEONCE_HOME, no network, and none of the user's settings and recordings."""
    settings = ("MODEL", "RECORDINGS", "DTYPE", "PREFIX_CACHE")
    for name in (*(f"SEEONCE_{name}" for name in settings), "ESCRIBANO_DB", "CAP_RECORDINGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line as typed, ``seeonce`` or ``verify-cache``, in-process.

    Further arguments are taken as they are, so that paths need no quoting.
    """

    def run_command(line: str, *more: object) -> Ended:
        program, *words = shlex.split(line)
        app, error_code = {"seeonce": (main.app, 1), "verify-cache": (main.verify_app, 2)}[program]
        capsys.readouterr()
        code = main.run(app, [*words, *map(str, more)], error_code=error_code)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run_command
