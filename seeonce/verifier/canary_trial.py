"""The canary's trial: a few questions about a few pictures, batched from a store against mlx-vlm live.

Owns the comparison, in one process. When it is run, and what follows from it, is ``infer.canary``'s.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cache.base.home import Home
from cache.key import pixel_digest
from cache.manifest import FrameEntry
from cache.pixel_index import PixelIndex
from cache.store import Durability, Store
from checkpoint.backend import provenance
from checkpoint.config import read_config
from checkpoint.folder import find_folder
from checkpoint.identity import encoder_spec
from infer.engine import Answer, answer_all
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.model import LanguageHalf
from infer.prompt import Prompt
from infer.sampling import Sampling
from infer.sequence import Request
from infer.tokenizer import ChatTokenizer
from seeonce.verifier.compare import LOGPROB, first_difference, margin_at
from seeonce.verifier.reference import LiveAnswer, LiveReference

_MOST = 16  # tokens of an answer


@dataclass(frozen=True, slots=True)
class TrialCase:
    """A small checkpoint, pictures that it can read, and what to ask about each."""

    checkpoint: Path
    pictures: tuple[Path, ...]
    questions: tuple[str, ...]


def run_trial(case: TrialCase, limits: BatchLimits) -> str | None:
    """Say in which answer batched decoding under ``limits`` parts from live, ``None`` if in none."""
    with tempfile.TemporaryDirectory(prefix="seeonce-canary-") as name:
        return _Trial(case, Home(Path(name))).run(limits)


class _Trial:
    """The demo checkpoint, loaded for both ways, and a store of its own."""

    def __init__(self, case: TrialCase, home: Home) -> None:
        self._case = case
        self._folder = find_folder(str(case.checkpoint), _nothing)
        self._config = read_config(self._folder.path)
        with PixelIndex(home) as index:
            self._spec = encoder_spec(self._folder, self._config, index)
        self._store = Store.open(home, durability=Durability.none)
        self._reference = LiveReference(self._folder, self._config, self._spec)

    def run(self, limits: BatchLimits) -> str | None:
        tokenizer = ChatTokenizer(self._folder, self._config)
        frames = [self._encoded(number, path) for number, path in enumerate(self._case.pictures)]
        asked = [(frame, question) for frame in frames for question in self._case.questions]
        requests = [
            Request(
                n, tokenizer.encode(Prompt(question).segments(frame)), (frame,), Sampling(max_tokens=_MOST)
            )
            for n, (frame, question) in enumerate(asked)
        ]
        half = LanguageHalf(self._folder, self._config, self._spec.compute_dtype)
        source = StoredFeatures(self._store, "canary")
        problems = {}
        for answer in answer_all(requests, half, source, tokenizer.stop_ids, limits):
            frame, question = asked[answer.request.id]
            live = self._reference.answer([frame.source], question, _MOST)
            problems[answer.request.id] = _problem(answer, live, LOGPROB[self._spec.compute_dtype])
        return next((problem for _, problem in sorted(problems.items()) if problem), None)

    def _encoded(self, number: int, path: Path) -> FrameEntry:
        """Put what mlx-vlm's own vision tower makes of a picture into the store."""
        with Image.open(path) as picture:
            (width, height), digest = picture.size, pixel_digest(np.asarray(picture.convert("RGB")))
        features = self._reference.features(str(path))
        key = self._store.write(digest, self._spec, features, provenance())
        grid, count = features.grid_thw, features.num_tokens
        return FrameEntry(number, 0.0, str(path), digest, key, width, height, grid, count)


def _nothing(line: str) -> None:
    """Say nothing: the checkpoint is a folder, and no download is to be told of."""


def _problem(answer: Answer, live: LiveAnswer, tolerance: float) -> str | None:
    """Say how an answer is not live's; where it first differs, live's margin must be within rounding."""
    if answer.error is not None:
        return answer.error
    if answer.request.prompt.ids != live.prompt_ids:
        return "a prompt has other tokens than mlx-vlm gives it"
    at = first_difference(answer.tokens, live.handed_out)
    if at is None or margin_at(live.margins, at) <= tolerance:
        return None
    return f"answer {answer.request.id} differs from token {at}"
