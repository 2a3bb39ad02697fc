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
from infer.engine import answer_all
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.model import LanguageHalf
from infer.prompt import Prompt
from infer.sampling import Sampling
from infer.sequence import Answer, Request
from infer.tokenizer import ChatTokenizer
from seeonce.verifier.differences import LOGPROB, first_difference, margin_at
from seeonce.verifier.reference import LiveAnswer, LiveReference

_MAX_TOKENS = 16


def run_trial(
    checkpoint: Path, pictures: list[Path], questions: list[str], limits: BatchLimits
) -> str | None:
    """Say in which answer batched decoding under ``limits`` differs from live, ``None`` if in none."""
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        return _run_trial(checkpoint, pictures, questions, limits, Home(Path(name)))


def _run_trial(
    checkpoint: Path, pictures: list[Path], questions: list[str], limits: BatchLimits, home: Home
) -> str | None:
    folder, config, spec = find_encoder(home, str(checkpoint), lambda _: None)
    store = Store.open(home, durability=Durability.none)
    reference, tokenizer = LiveReference(folder, config, spec), ChatTokenizer(folder, config)
    frames = [_encoded(store, spec, reference, number, path) for number, path in enumerate(pictures)]
    asked = [(frame, question) for frame in frames for question in questions]
    requests = _requests(tokenizer, asked)
    half = LanguageHalf(folder, config, spec.compute_dtype)
    source = StoredFeatures(store, "canary")
    problems = {}
    for answer in answer_all(requests, half, source, tokenizer.stop_ids, limits):
        frame, question = asked[answer.request.id]
        live = reference.answer([frame.source], question, _MAX_TOKENS)
        problems[answer.request.id] = _problem(answer, live, LOGPROB[spec.compute_dtype])
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


def _requests(tokenizer: ChatTokenizer, asked: list[tuple[FrameEntry, str]]) -> list[Request]:
    return [
        Request(
            n, tokenizer.encode(Prompt(question).segments(frame)), (frame,), Sampling(max_tokens=_MAX_TOKENS)
        )
        for n, (frame, question) in enumerate(asked)
    ]


def _problem(answer: Answer, live: LiveAnswer, tolerance: float) -> str | None:
    """Say how an answer is not live's; where it first differs, live's margin must be within rounding."""
    if answer.error is not None:
        return answer.error
    if answer.request.prompt.ids != live.prompt_ids:
        return "a prompt has other tokens than mlx-vlm gives it"
    at = first_difference(answer.tokens, live.answer_tokens)
    if at is None or margin_at(live.margins, at) <= tolerance:
        return None
    return f"answer {answer.request.id} differs from token {at}"
