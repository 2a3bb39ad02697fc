"""The canary's trial: a few questions about a few pictures, batched from a store against mlx-vlm live."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cache.base.home import Home
from cache.key import EncoderSpec, pixel_digest
from cache.manifest import FrameEntry
from cache.store import Durability, Store
from checkpoint.backend import provenance
from checkpoint.identity import find_encoder
from infer.engine import Engine
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Answer, Request
from infer.sampling import Sampling
from infer.sequence import sampling_hooks
from seeonce.runs.prompts import Prompt
from seeonce.verifier.differences import LOGPROB, first_difference, margin_at
from seeonce.verifier.reference import LiveAnswer, LiveReference

_MAX_TOKENS = 16


def run_trial(
    checkpoint: Path, pictures: list[Path], questions: list[str], limits: BatchLimits
) -> str | None:
    """Say in which answer batched decoding under ``limits`` differs from live, else ``None``."""
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        return _run_trial(checkpoint, pictures, questions, limits, Home(Path(name)))


def _run_trial(
    checkpoint: Path, pictures: list[Path], questions: list[str], limits: BatchLimits, home: Home
) -> str | None:
    folder, config, spec = find_encoder(home, str(checkpoint), lambda _: None)
    store = Store.open(home, durability=Durability.none)
    reference = LiveReference(folder, config, spec)
    frames = [_encoded(store, spec, reference, number, path) for number, path in enumerate(pictures)]
    asked = [(frame, question) for frame in frames for question in questions]
    requests = [
        Request(number, Prompt(question).segments(frame), Sampling(max_tokens=_MAX_TOKENS))
        for number, (frame, question) in enumerate(asked)
    ]
    engine = Engine.load(folder, config, spec.compute_dtype)
    source = StoredFeatures(store, "canary")
    problems = dict[int, str | None]()
    for request, answer in engine.answer(requests, source, limits, hooks_of=sampling_hooks):
        frame, question = asked[request.id]
        live = reference.answer([frame.source], question, _MAX_TOKENS)
        prompt_ids = engine.tokenizer.encode(request.segments).ids
        if answer.error is None and prompt_ids != live.prompt_ids:
            problems[request.id] = "a prompt has other tokens than mlx-vlm gives it"
        else:
            problems[request.id] = _problem(request, answer, live, LOGPROB[spec.compute_dtype])
    return next((problem for _, problem in sorted(problems.items()) if problem), None)


def _encoded(
    store: Store, spec: EncoderSpec, reference: LiveReference, number: int, path: Path
) -> FrameEntry:
    """Put what mlx-vlm's own vision tower makes of a picture into the store."""
    with Image.open(path) as picture:
        (width, height), digest = picture.size, pixel_digest(np.asarray(picture.convert("RGB")))
    features = reference.features(str(path))
    key = store.write(digest, spec, features, provenance())
    grid, count = features.grid_thw, features.num_tokens
    return FrameEntry(number, 0.0, str(path), digest, key, width, height, grid, count)


def _problem(request: Request, answer: Answer, live: LiveAnswer, tolerance: float) -> str | None:
    """Say how an answer is not live's; where it first differs, live's margin must be within rounding."""
    if answer.error is not None:
        return answer.error
    at = first_difference(answer.tokens, live.answer_tokens)
    if at is None or margin_at(live.margins, at) <= tolerance:
        return None
    return f"answer {request.id} differs from token {at}"
