"""The loop of pass two: requests in, answers out as they finish, never more in flight than allowed.

Owns scheduling: features are read when a request is about to be prefilled, so memory does not grow with
the number of frames. Does not own the model (``mlx_vlm_adapter``) or what is done with answers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from cache.entry import Features
from cache.errors import InputError, SeeonceError
from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.hooks import RowHooks, RowProcessor, TokenLogprobs
from infer.limits import BatchLimits
from infer.mlx_vlm_adapter import ContinuousBatch, LanguageHalf, Token
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
    """The tokens of one request, the stop token left out; or the error that kept it from an answer.

    ``finish_reason`` is "stop", "length", "error", or the word with which the request's watch ended it.
    ``logprobs`` are those of ``tokens``, when they were asked for.
    """

    request: Request
    tokens: tuple[int, ...]
    finish_reason: str
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


HooksOf = Callable[[Request], RowHooks]
"""What a request brings along; an error that it raises becomes the answer of its request."""


def sampling_hooks(request: Request) -> RowHooks:
    """Return what draws a request's tokens; nothing for greedy decoding."""
    if request.sampling.temperature == 0:
        return RowHooks()
    return RowHooks((SeededDraw(request.sampling, request.keys, request.prompt.ids),))


def answer_all(
    requests: Iterable[Request],
    half: LanguageHalf,
    source: FeatureSource,
    stop_ids: frozenset[int],
    limits: BatchLimits,
    hooks_of: HooksOf = sampling_hooks,
) -> Iterator[Answer]:
    """Answer ``requests``, yielding each as it finishes; which order that is depends on their lengths.

    A request that fails, before its prefill or while it is decoded, becomes an answer that says why, and
    the others go on: nothing of theirs depends on it.
    """
    loop = _Loop(half, source, stop_ids, limits, hooks_of)
    try:
        yield from loop.run(iter(requests))
    finally:
        loop.batch.close()


class _Running:
    """One request in the batch: what it brought along, and its tokens so far."""

    def __init__(self, request: Request, hooks: RowHooks) -> None:
        self.request = request
        self.processor = RowProcessor(hooks) if hooks.touches_logits else None
        self._watch = hooks.watch
        self._tokens: list[int] = []

    def take(self, token: Token) -> Answer | None:
        """Take the next token; return the answer when it ends here."""
        finish_reason = token.finish_reason
        if finish_reason != "stop":
            self._tokens.append(token.token)
            if self.processor is not None:
                self.processor.taken(token.token)
            try:
                finish_reason = (self._watch and self._watch.seen(token.token)) or finish_reason
            except SeeonceError as error:
                return self.failed(str(error))
        if finish_reason is None:
            # The next token is decoded already: an error on the way to it ends the request here.
            problem = self.processor and self.processor.error
            return self.failed(problem) if problem else None
        logprobs = self.processor.logprobs(len(self._tokens)) if self.processor is not None else ()
        return Answer(self.request, tuple(self._tokens), finish_reason, logprobs=logprobs)

    def failed(self, problem: str) -> Answer:
        """Return what this request becomes when it cannot go on."""
        return Answer(self.request, (), "error", problem)


class _Loop:
    """One run of ``answer_all``."""

    def __init__(
        self,
        half: LanguageHalf,
        source: FeatureSource,
        stop_ids: frozenset[int],
        limits: BatchLimits,
        hooks_of: HooksOf,
    ) -> None:
        self.batch = ContinuousBatch(half, limits, stop_ids)
        self._half, self._source, self._hooks_of = half, source, hooks_of
        self._running: dict[int, _Running] = {}

    def run(self, waiting: Iterator[Request]) -> Iterator[Answer]:
        exhausted = False
        while self._running or not exhausted:
            wanted = self.batch.num_wanted
            admitted = list(islice(waiting, wanted))
            exhausted = exhausted or len(admitted) < wanted
            for request in admitted:
                try:
                    self._insert(request)
                except SeeonceError as error:
                    yield Answer(request, (), "error", str(error))
            for token in self.batch.step():
                answer = self._running[token.uid].take(token)
                if answer is not None:
                    del self._running[token.uid]
                    if token.finish_reason is None:
                        self.batch.remove(token.uid)
                    yield answer

    def _insert(self, request: Request) -> None:
        text = self._half.config.text
        room = text.max_context - len(request.prompt.ids)
        if room < 1:
            raise InputError(
                f"The prompt has {len(request.prompt.ids):,} tokens and the model's context "
                f"{text.max_context:,}: shorten it, or encode with a lower --max-pixels."
            )
        running = _Running(request, self._hooks_of(request))
        features = [self._source.features(frame) for frame in request.frames]
        inputs = self._half.inputs(request.prompt, features)
        max_tokens = min(request.sampling.max_tokens, room)
        self._running[self.batch.insert(inputs, max_tokens, running.processor)] = running
