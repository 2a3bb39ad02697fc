"""Whether batching is right here, tried with small checkpoints where nobody has tried it."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from cache.base.errors import SeeonceError
from cache.base.home import Home
from infer import canary
from infer.limits import BatchLimits
from seeonce.runs.options import DescribeOptions
from seeonce.runs.recording import select

_RECURRENT = "gated delta nets"


def sound_limits(home: Home, options: DescribeOptions, say: Callable[[str], None]) -> BatchLimits:
    """Return limits under which answers are right here: those of ``options``, or slower ones.

    It is tried out where nobody has, with a decoder of the kind that is to answer.

    Raises:
        CheckpointError: answers are wrong either way.
    """
    if _has_recurrent_states(home, options, say):
        return canary.sound_limits(home, options.limits, lambda limits: try_random(limits), say, _RECURRENT)
    return canary.sound_limits(home, options.limits, lambda limits: try_demo(limits), say)


def _has_recurrent_states(home: Home, options: DescribeOptions, say: Callable[[str], None]) -> bool:
    try:
        config = select(home, options.recording, options.model, say).config
    except SeeonceError:
        return False  # which is told by whoever asks
    return any(layer.is_recurrent for layer in config.text.layers)


def try_demo(limits: BatchLimits) -> str | None:
    """Let the demo checkpoint answer about drawn screens, batched and live."""
    return _try_checkpoint(_demo() / "checkpoint", _questions(), limits)


def try_random(limits: BatchLimits) -> str | None:
    """Let a random Qwen3.5 answer about drawn screens, batched and live; questions are of several lengths."""
    from seeonce.demo.random_qwen3_5 import write_checkpoint

    questions = [question + " And why?" * number for number, question in enumerate(_questions())]
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        return _try_checkpoint(write_checkpoint(Path(name), _demo() / "checkpoint"), questions, limits)


def _try_checkpoint(checkpoint: Path, questions: list[str], limits: BatchLimits) -> str | None:
    from seeonce.verifier.canary_trial import run_trial

    pictures = sorted((_demo() / "recording").glob("*.png"))[::8]
    return run_trial(checkpoint, pictures, questions, limits)


def _questions() -> list[str]:
    from seeonce.demo.questions import QUESTIONS

    return [QUESTIONS[name][0] for name in ("apps", "activity", "windows")]


def _demo() -> Path:
    from seeonce import demo

    return Path(demo.__file__).parent
