"""Whether batching is right here, tried with the demo checkpoint, once for each device and versions."""

from dataclasses import replace
from pathlib import Path

from cache.base.listener import Listener
from infer import canary
from infer.limits import BatchLimits
from seeonce.runs.describe import DescribeResult, Session, describe
from seeonce.runs.options import DescribeOptions
from seeonce.runs.recording import Selected


def describe_soundly(
    session: Session, selected: Selected, options: DescribeOptions, listener: Listener
) -> DescribeResult:
    """Describe under the limits of ``options``, or slower ones under which answers are right here.

    They are tried with the demo checkpoint first where that was not done for this device and these versions.

    Raises:
        CheckpointError: answers are wrong either way, or the model does not load.
    """
    limits = canary.sound_limits(session.home, options.limits, lambda tried: try_demo(tried), listener.say)
    return describe(session, selected, replace(options, limits=limits), listener)


def try_demo(limits: BatchLimits) -> str | None:
    """Let the demo checkpoint answer about drawn screens, batched and live."""
    from seeonce import demo
    from seeonce.demo.questions import QUESTIONS
    from seeonce.verifier.canary_trial import run_trial

    folder = Path(demo.__file__).parent
    pictures = sorted((folder / "recording").glob("*.png"))[::8]
    questions = [QUESTIONS[name][0] for name in ("apps", "activity", "windows")]
    return run_trial(folder / "checkpoint", pictures, questions, limits)
