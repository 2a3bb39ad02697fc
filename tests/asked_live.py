"""Requests of any shape over a recording of noise, and what mlx-vlm live answers to each, one at a time."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from live_mlx_vlm import SIZES, Encoded, Live, draw_noise, encode_folder, start_from_disk_if_told
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import prepare_inputs

from cache.base.home import Home
from cache.manifest import FrameEntry
from cache.prefixes import PrefixStore
from infer.engine import Engine, EngineStats
from infer.features import FeatureSource, StoredFeatures
from infer.hooks import RowHooks
from infer.limits import BatchLimits
from infer.request import Answer, Image, Request, Text
from infer.sampling import Sampling
from infer.sequence import HooksOf
from infer.tokenizer import PromptTokens

WORDS = ("which", "window", "holds", "the", "cursor", "now", "and", "what", "does", "its", "title", "say")
NO_STOP = frozenset[int]()


@dataclass(frozen=True, slots=True)
class LiveTrace:
    """A greedy answer that never stops: per token its log-probability and live's winning margin."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]

    def until(self, num_tokens: int) -> "LiveTrace":
        """Return its first tokens: what a request for fewer is answered."""
        return LiveTrace(self.tokens[:num_tokens], self.logprobs[:num_tokens], self.margins[:num_tokens])


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run gave: answers by request id, and what the engine counted."""

    answers: dict[int, Answer]
    stats: EngineStats

    def tokens(self, requests: list[Request]) -> list[tuple[int, ...]]:
        assert all(answer.error is None for answer in self.answers.values())
        return [self.answers[request.id].tokens for request in requests]


# What live answers, by checkpoint, compute type, prompt and pictures: modules that ask the same share it.
_TRACES: dict[tuple[Path, str, tuple[int, ...], tuple[bytes, ...]], LiveTrace] = {}


class Asked:
    """A recording in a store, an engine, and the live model beside them."""

    def __init__(
        self,
        checkpoint: Path,
        root: Path,
        num_images: int,
        dtype: str = "float32",
        num_sizes: int = len(SIZES),
    ) -> None:
        images = draw_noise(root / "images", num_images, num_sizes=num_sizes)
        with patch.dict(os.environ, SEEONCE_DTYPE=dtype):
            self.encoded: Encoded = encode_folder(checkpoint, images, root / "home")
        assert self.encoded.spec.compute_dtype == dtype
        self.frames = self.encoded.manifest.frames
        self.engine = Engine.load(self.encoded.checkpoint, dtype)
        start_from_disk_if_told(self.engine, self.encoded.store.home)
        self.tokenizer = self.engine.tokenizer
        self.source = StoredFeatures(self.encoded.store, "images")
        self._checkpoint, self._dtype = checkpoint, dtype

    @contextmanager
    def on_disk(self, folder: Path, max_bytes: int = 1 << 30) -> Iterator[None]:
        """Keep prefixes on disk, under ``folder``, while the block runs."""
        folder.mkdir(exist_ok=True)
        self.engine.keep_prefixes(PrefixStore(Home(folder), max_bytes), ("these weights",))
        try:
            yield
        finally:
            self.engine.prefix_cache = None

    def request(self, number: int, *parts: str | FrameEntry, max_tokens: int = 4) -> Request:
        """Make a request of texts and frames, in the order given."""
        segments = tuple(Text(part) if isinstance(part, str) else Image(part) for part in parts)
        return Request(number, segments, Sampling(max_tokens=max_tokens))

    def prompt(self, request: Request) -> PromptTokens:
        """Return the tokens of a request's prompt."""
        return self.tokenizer.encode(request.segments, request.system, thinking=request.thinking)

    def questions(self, num_questions: int, frames: list[FrameEntry] | None = None) -> list[Request]:
        """Ask questions of several lengths about every frame, frame by frame."""
        texts = [" ".join(WORDS[: 1 + 2 * index]) + f" {index}?" for index in range(num_questions)]
        asked = [(frame, text) for frame in frames or self.frames for text in texts]
        return [self.request(number, frame, text) for number, (frame, text) in enumerate(asked)]

    def run(
        self,
        requests: list[Request],
        limits: BatchLimits,
        hooks_of: HooksOf = lambda _: RowHooks(),
        source: FeatureSource | None = None,
    ) -> Ended:
        """Answer from the store, batched; no token stops an answer.

        A control with a ``source`` of its own must be asked for features, so nothing comes from disk then.
        """
        stats: list[EngineStats] = []
        kept = self.engine.prefix_cache
        self.engine.prefix_cache = None if source else kept
        answers = self.engine.answer(
            requests,
            source or self.source,
            limits,
            hooks_of=hooks_of,
            stop_ids=NO_STOP,
            report=stats.append,
        )
        ended = {request.id: answer for request, answer in answers}
        self.engine.prefix_cache = kept
        return Ended(ended, stats[0])

    def live(self, request: Request) -> LiveTrace:
        """Let mlx-vlm encode and answer; asked again for no more tokens, it is not asked."""
        prompt, num_tokens = self.prompt(request), request.sampling.max_tokens
        asked = self._checkpoint, self._dtype, prompt.ids, tuple(key.raw for key in request.keys)
        if asked not in _TRACES or len(_TRACES[asked].tokens) < num_tokens:
            _TRACES[asked] = _trace(_live(self._checkpoint, self._dtype), request, prompt)
        return _TRACES[asked].until(num_tokens)

    def want(self, requests: list[Request]) -> list[tuple[int, ...]]:
        """Return live's tokens of each request."""
        return [self.live(request).tokens for request in requests]


_live = cache(Live)


def _trace(live: Live, request: Request, prompt: PromptTokens) -> LiveTrace:
    text = live.processor.tokenizer.decode(list(_folded(prompt)))
    inputs = prepare_inputs(
        live.processor,
        images=[frame.source for frame in request.frames] or None,
        prompts=text,
        add_special_tokens=False,
        image_token_index=live.model.config.image_token_index,
    )
    assert tuple(inputs["input_ids"].tolist()[0]) == prompt.ids
    rows: list[np.ndarray] = []

    def noted(tokens: mx.array, logits: mx.array) -> mx.array:
        # mlx-vlm's own log-probabilities are rounded to the compute type; in bfloat16 that is 0.1 and more.
        rows.append(np.array(logits[0].astype(mx.float32)))
        return logits

    steps = generate_step(
        inputs["input_ids"],
        live.model,
        inputs.get("pixel_values"),
        inputs["attention_mask"],
        temperature=0.0,
        logits_processors=[noted],
        max_tokens=request.sampling.max_tokens,
        **({"image_grid_thw": inputs["image_grid_thw"]} if request.frames else {}),
    )
    tokens = [int(token) for token, _ in steps]
    logprobs = [
        float(row[token] - np.logaddexp.reduce(row)) for token, row in zip(tokens, rows, strict=False)
    ]
    margins = [float(np.diff(np.sort(row)[-2:])[0]) for row in rows[: len(tokens)]]
    return LiveTrace(tuple(tokens), tuple(logprobs), tuple(margins))


def _folded(prompt: PromptTokens) -> list[int]:
    """Return the prompt's ids with one image token for each image, as mlx-vlm's processor takes them."""
    ids: list[int] = []
    at = 0
    for span in prompt.images:
        ids += prompt.ids[at : span.start + 1]
        at = span.start + span.num_tokens
    return [*ids, *prompt.ids[at:]]


def mixed_parts(rng: random.Random, frames: list[FrameEntry]) -> list[str | FrameEntry]:
    """Draw a prompt: no, one or several frames, with text before, between and after them, or without."""
    parts: list[str | FrameEntry] = []
    if rng.random() < 0.4:
        parts.append(_text(rng, 6))
    for number in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        if number and rng.random() < 0.6:
            parts.append(f"Frame {number + 1}: ")
        parts.append(rng.choice(frames))
    parts.append(_text(rng, 30))
    return parts


def variant(rng: random.Random, parts: list[str | FrameEntry]) -> list[str | FrameEntry]:
    """Ask something else over the same beginning: another ending, or more text after it."""
    last = parts[-1]
    assert isinstance(last, str)
    return [
        *parts[:-1],
        rng.choice([_text(rng, 12), last + " " + _text(rng, 4), last[: len(last) // 2] + "?"]),
    ]


def _text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most))) + rng.choice("?.! ")


def renumbered(requests: list[Request], order: list[int]) -> list[Request]:
    """Return some of the requests, in another order, with ids of their own."""
    return [replace(requests[which], id=number) for number, which in enumerate(order)]
