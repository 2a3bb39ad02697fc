"""Whether batching is right here: a few questions about a few pictures, batched from a store against live."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.base.home import Home
from cache.base.listener import Listener
from cache.key import EncoderSpec, pixel_digest
from cache.manifest import FrameEntry
from cache.store import Durability, Store
from checkpoint.backend import provenance
from checkpoint.config import Checkpoint
from checkpoint.identity import find_encoder
from infer import canary
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling
from seeonce import demo
from seeonce.demo.questions import QUESTIONS
from seeonce.demo.random_qwen3_5 import write_checkpoint
from seeonce.runs.describe import DescribeResult, Session, describe
from seeonce.runs.options import DescribeOptions
from seeonce.runs.plan import Plan
from seeonce.runs.prompts import Prompt
from seeonce.runs.recording import Selected
from seeonce.verifier.differences import LOGPROB

if TYPE_CHECKING:
    from seeonce.verifier.reference import LiveReference

_MAX_TOKENS = 16
_DEMO = Path(demo.__file__).parent
_QUESTIONS = [QUESTIONS[name][0] for name in ("apps", "activity", "windows")]


def describe_soundly(
    session: Session,
    selected: Selected,
    options: DescribeOptions,
    listener: Listener,
    plan: Plan | None = None,
) -> DescribeResult:
    """Describe under the limits of ``options``, or slower ones under which answers are right here.

    They are tried first, with a decoder of the kind that is to answer, where that was not done for this
    device and these versions.

    Raises:
        CheckpointError: answers are wrong either way, or the model does not load.
    """
    limits = sound_limits(session.home, selected.checkpoint, options.limits, listener.say)
    return describe(session, selected, replace(options, limits=limits), listener, plan)


def sound_limits(
    home: Home, checkpoint: Checkpoint, limits: BatchLimits, say: Callable[[str], None]
) -> BatchLimits:
    """Return ``limits``, or slower ones under which a checkpoint of this kind answers rightly here.

    Raises:
        CheckpointError: answers are wrong either way.
    """
    if any(layer.is_recurrent for layer in checkpoint.text.layers):
        return canary.sound_limits(home, limits, try_random, say, canary.RECURRENT)
    return canary.sound_limits(home, limits, try_demo, say)


def try_demo(limits: BatchLimits) -> str | None:
    """Let the demo checkpoint answer about drawn screens, batched and live."""
    return _try_checkpoint(_DEMO / "checkpoint", _QUESTIONS, limits)


def try_random(limits: BatchLimits) -> str | None:
    """Let a random Qwen3.5 answer about drawn screens, batched and live; questions are of several lengths."""
    questions = [question + " And why?" * number for number, question in enumerate(_QUESTIONS)]
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        return _try_checkpoint(write_checkpoint(Path(name), _DEMO / "checkpoint"), questions, limits)


def _try_checkpoint(folder: Path, questions: list[str], limits: BatchLimits) -> str | None:
    """Say in which answer batched decoding under ``limits`` differs from live, else ``None``."""
    from infer.engine import Engine
    from infer.sequence import sampling_hooks
    from seeonce.verifier.outputs import answer_problem
    from seeonce.verifier.reference import LiveReference

    pictures = sorted((_DEMO / "recording").glob("*.png"))[::16]
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        home = Home(Path(name))
        checkpoint, spec = find_encoder(home, str(folder), lambda _: None)
        store = Store.open(home, durability=Durability.none)
        reference = LiveReference(checkpoint, spec)
        frames = [_encoded(store, spec, reference, number, path) for number, path in enumerate(pictures)]
        asked = [(frame, question) for frame in frames for question in questions]
        requests = [
            Request(number, Prompt(question).segments(frame), Sampling(max_tokens=_MAX_TOKENS))
            for number, (frame, question) in enumerate(asked)
        ]
        engine = Engine.load(checkpoint, spec.compute_dtype)
        source = StoredFeatures(store, "canary")
        problems = dict[int, str | None]()
        for request, answer in engine.answer(requests, source, limits, hooks_of=sampling_hooks):
            frame, question = asked[request.id]
            live = reference.answer([frame.source], question, _MAX_TOKENS)
            tolerance = LOGPROB[spec.compute_dtype]
            problems[request.id] = answer_problem(request, live, answer, engine.tokenizer, tolerance)
        found = next((item for item in sorted(problems.items()) if item[1]), None)
        return None if found is None else f"answer {found[0]} differs: {found[1]}"


def _encoded(
    store: Store, spec: EncoderSpec, reference: "LiveReference", number: int, path: Path
) -> FrameEntry:
    """Put what mlx-vlm's own vision tower makes of a picture into the store."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        (width, height), digest = picture.size, pixel_digest(np.asarray(picture.convert("RGB")))
    features = reference.features(str(path))
    key = store.write(digest, spec, features, provenance())
    grid, count = features.grid_thw, features.num_tokens
    return FrameEntry(number, 0.0, str(path), digest, key, width, height, grid, count)
