"""The loop of pass two: requests in, answers out as they finish, never more in flight than allowed.

Owns scheduling: features are read when a request is about to be prefilled, so memory does not grow with
the number of frames. Does not own the model (``mlx_vlm_adapter``) or what is done with answers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from cache.entry import Features
from cache.errors import InputError, SeeonceError
from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.limits import BatchLimits
from infer.mlx_vlm_adapter import ContinuousBatch, LanguageHalf, LogitsProcessor
from infer.sampling import Sampling, SeededDraw
from infer.tokenizer import PromptTokens


class FeatureSource(Protocol):
    """Where features come from: the store, or the live encoder when outputs are verified."""

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a frame.

        Raises:
            SeeonceError: there are none; the request gets this error, the others go on.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt over one or several frames. ``id`` is the caller's own."""

    id: int
    prompt: PromptTokens
    frames: tuple[FrameEntry, ...]
    sampling: Sampling

    @property
    def keys(self) -> tuple[EntryKey, ...]:
        """Keys of the frames, in the order in which the prompt shows them."""
        return tuple(frame.key for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of one request, the stop token left out; or the error that kept it from an answer."""

    request: Request
    tokens: tuple[int, ...]
    finish_reason: str
    error: str | None = None


ProcessorOf = Callable[[Request], LogitsProcessor | None]


def seeded_processor(request: Request) -> LogitsProcessor | None:
    """Return what draws a request's tokens; ``None`` for greedy decoding."""
    if request.sampling.temperature == 0:
        return None
    return SeededDraw(request.sampling, request.keys, request.prompt.ids)


@dataclass(slots=True)
class _Running:
    request: Request
    tokens: list[int] = field(default_factory=list)


def answer_all(
    requests: Iterable[Request],
    half: LanguageHalf,
    source: FeatureSource,
    stop_ids: frozenset[int],
    limits: BatchLimits,
    processor_of: ProcessorOf = seeded_processor,
) -> Iterator[Answer]:
    """Answer ``requests``, yielding each as it finishes; which order that is depends on their lengths."""
    waiting = iter(requests)
    batch = ContinuousBatch(half, limits, stop_ids)
    running: dict[int, _Running] = {}
    try:
        exhausted = False
        while running or not exhausted:
            admitted = list(islice(waiting, batch.num_wanted))
            exhausted = exhausted or (batch.num_wanted > 0 and len(admitted) < batch.num_wanted)
            for request in admitted:
                try:
                    running[_insert(request, half, source, batch, processor_of)] = _Running(request)
                except SeeonceError as error:
                    yield Answer(request, (), "error", str(error))
            for token in batch.step():
                state = running[token.uid]
                if token.finish_reason != "stop":
                    state.tokens.append(token.token)
                if token.finish_reason is not None:
                    del running[token.uid]
                    yield Answer(state.request, tuple(state.tokens), token.finish_reason)
    finally:
        batch.close()


def _insert(
    request: Request,
    half: LanguageHalf,
    source: FeatureSource,
    batch: ContinuousBatch,
    processor_of: ProcessorOf,
) -> int:
    room = half.config.text.max_context - len(request.prompt.ids)
    if room < 1:
        raise InputError(
            f"The prompt has {len(request.prompt.ids):,} tokens and the model's context "
            f"{half.config.text.max_context:,}: shorten it, or encode with a lower --max-pixels."
        )
    features = [source.features(frame) for frame in request.frames]
    inputs = half.inputs(request.prompt, features)
    return batch.insert(inputs, min(request.sampling.max_tokens, room), processor_of(request))
