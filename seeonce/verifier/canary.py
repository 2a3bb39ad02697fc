"""Whether batching is right here, tried with the demo checkpoint where nobody has tried it."""

from collections.abc import Callable
from pathlib import Path

from cache.base.home import Home
from infer import canary
from infer.limits import BatchLimits


def sound_limits(home: Home, limits: BatchLimits, say: Callable[[str], None]) -> BatchLimits:
    """Return ``limits``, or slower ones under which answers are right here; try it out where nobody has.

    Raises:
        CheckpointError: answers are wrong either way.
    """
    return canary.sound_limits(home, limits, lambda tried: try_demo(tried), say)


def try_demo(limits: BatchLimits) -> str | None:
    """Let the demo checkpoint answer about drawn screens, batched and live."""
    from seeonce import demo
    from seeonce.demo.questions import QUESTIONS
    from seeonce.verifier.canary_trial import run_trial

    folder = Path(demo.__file__).parent
    pictures = sorted((folder / "recording").glob("*.png"))[::8]
    questions = [QUESTIONS[name][0] for name in ("apps", "activity", "windows")]
    return run_trial(folder / "checkpoint", pictures, questions, limits)
