"""The trial that decides whether batching is right here: the demo checkpoint, batched against live."""

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
    from seeonce.verifier.canary_trial import TrialCase, run_trial

    folder = Path(demo.__file__).parent
    pictures = sorted((folder / "recording").glob("*.png"))[::8]
    questions = tuple(QUESTIONS[name][0] for name in ("apps", "activity", "windows"))
    return run_trial(TrialCase(folder / "checkpoint", tuple(pictures), questions), limits)
