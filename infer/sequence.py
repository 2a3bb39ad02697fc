"""A question from its arrival in the engine to its answer: request, sequence, answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cache.base.errors import SeeonceError
from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.hooks import LogitsProcessor, RowHooks, RowProcessor, TokenLogprobs, TokenWatch, Watches
from infer.kv_cache import SharedPrefix
from infer.sampling import RepetitionPenalty, RepetitionWatch, Sampling, SeededDraw, StopWatch
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


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine, from when it is chosen to be prefilled to its last token.

    Its first ``num_shared`` tokens start from ``prefix``, and of its own the first ``num_kept`` are kept for
    others that begin in the same way. ``uid`` names its row; it may still get ``num_to_come`` tokens.
    """

    request: Request
    prefix: SharedPrefix | None = None
    num_shared: int = 0
    num_kept: int = 0
    uid: int = 0
    num_to_come: int = 0
    processor: RowProcessor | None = None
    watch: TokenWatch | None = None
    tokens: list[int] = field(default_factory=list)

    def begin(self, uid: int, max_tokens: int, hooks: RowHooks) -> None:
        """Take a row of the batch, and what the request brings along."""
        self.uid, self.num_to_come, self.watch = uid, max_tokens, hooks.watch
        self.processor = RowProcessor(hooks) if hooks.touches_logits else None

    def take(self, token: int, finish_reason: str | None) -> Answer | None:
        """Take the next token; return the answer when it ends here.

        ``finish_reason`` is "stop", "length", or ``None`` when more follow.
        """
        self.num_to_come -= 1
        if finish_reason != "stop":
            self.tokens.append(token)
            if self.processor is not None:
                self.processor.taken(token)
            try:
                finish_reason = (self.watch and self.watch.seen(token)) or finish_reason
            except SeeonceError as error:
                return self.failed(str(error))
        if finish_reason is None:
            # The next token is decoded already: an error on the way to it ends the request here.
            problem = self.processor and self.processor.error
            return self.failed(problem) if problem else None
        logprobs = self.processor.logprobs(len(self.tokens)) if self.processor is not None else ()
        return Answer(self.request, tuple(self.tokens), finish_reason, logprobs=logprobs)

    def failed(self, problem: str) -> Answer:
        """Return what this request becomes when it cannot go on."""
        return Answer(self.request, (), "error", problem)


HooksOf = Callable[[Request], RowHooks]
"""What a request brings along; an error that it raises becomes the answer of its request."""


def sampling_hooks(request: Request) -> RowHooks:
    """Return what draws a request's tokens; nothing for greedy decoding."""
    if request.sampling.temperature == 0:
        return RowHooks()
    return RowHooks((SeededDraw(request.sampling, request.keys, request.prompt.ids),))


def request_hooks(
    request: Request, decode: Callable[[Iterable[int]], str], schema: LogitsProcessor | None = None
) -> RowHooks:
    """Return what a request brings along; ``decode`` turns tokens into text, ``schema`` rules tokens out."""
    sampling = request.sampling
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenalty(sampling))
    if schema is not None:
        processors.append(schema)  # after the penalty, which it has the last word over; before the draw
    if sampling.temperature > 0:
        processors.append(SeededDraw(sampling, request.keys, request.prompt.ids))
    watches: list[TokenWatch] = [StopWatch(sampling.stop, decode)] if sampling.stop else []
    return RowHooks(tuple(processors), Watches([*watches, RepetitionWatch()]), sampling.logprobs)
