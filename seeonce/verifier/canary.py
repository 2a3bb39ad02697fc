"""Whether batching is right here, tried with small checkpoints, once for each device and versions."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cache.base.home import Home
from cache.base.listener import Listener
from checkpoint.config import CheckpointConfig
from infer import canary
from infer.limits import BatchLimits
from seeonce.runs.describe import DescribeResult, Session, describe
from seeonce.runs.options import DescribeOptions
from seeonce.runs.recording import Selected

_RECURRENT = "gated delta nets"


def describe_soundly(
    session: Session, selected: Selected, options: DescribeOptions, listener: Listener
) -> DescribeResult:
    """Describe under the limits of ``options``, or slower ones under which answers are right here.

    They are tried first, with a decoder of the kind that is to answer, where that was not done for this
    device and these versions.

    Raises:
        CheckpointError: answers are wrong either way, or the model does not load.
    """
    limits = sound_limits(session.home, selected.config, options.limits, listener.say)
    return describe(session, selected, replace(options, limits=limits), listener)


def sound_limits(
    home: Home, config: CheckpointConfig, limits: BatchLimits, say: Callable[[str], None]
) -> BatchLimits:
    """Return ``limits``, or slower ones under which a checkpoint of this kind answers rightly here.

    Raises:
        CheckpointError: answers are wrong either way.
    """
    if any(layer.is_recurrent for layer in config.text.layers):
        return canary.sound_limits(home, limits, lambda tried: try_random(tried), say, _RECURRENT)
    return canary.sound_limits(home, limits, lambda tried: try_demo(tried), say)


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
