"""A client's request on its way through the engine, and what is told of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cache.key import EncoderSpec
from cache.manifest import FrameEntry
from infer.request import Answer, Request, TokenLogprob
from infer.sequence import Sequence
from infer.tokenizer import ChatTokenizer
from precompute.patches import Patches
from seeonce.server.errors import ApiError
from seeonce.server.growing_text import GrowingText
from seeonce.server.models import ServedModel

CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request fits and will be answered."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What came to the text of one answer."""

    index: int
    content: str
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()

    def __add__(self, more: "Delta") -> "Delta":
        """Return this and what came after it."""
        return Delta(
            self.index,
            self.content + more.content,
            self.reasoning + more.reasoning,
            self.logprobs + more.logprobs,
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """One answer, whole. ``rest`` is what no delta had; ``cached_tokens`` of its prompt were read before."""

    index: int
    answer: Answer
    cached_tokens: int
    rest: Delta


Event = Accepted | Delta | Ended | ApiError


@dataclass(frozen=True, slots=True, eq=False)
class NewPicture:
    """A picture that the store did not have, ready for the encoder; ``keep`` lets it be stored."""

    frame: FrameEntry
    spec: EncoderSpec
    patches: Patches
    keep: bool


@dataclass(slots=True, eq=False)
class Job:
    """One request of a client: as many answers as it asks for. ``emit`` may be called from any thread.

    Unless ``keep``, nothing of its prompt is kept on disk.
    """

    model: ServedModel
    requests: tuple[Request, ...]
    emit: Callable[[Event], None]
    pictures: tuple[NewPicture, ...] = ()
    stream: bool = False
    keep: bool = True
    arrived_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Let the engine drop the request: nobody waits for it any more."""
        self.cancelled = True


@dataclass(slots=True, eq=False)
class Choice:
    """One answer of a job; watches its tokens, and tells of them whenever ``tick()`` has moved on."""

    job: Job
    index: int
    on_first: Callable[[Job], None]
    tick: Callable[[], float]
    sequence: Sequence | None = None
    _text: GrowingText | None = None
    _tokenizer: ChatTokenizer | None = None
    _num_seen: int = 0
    _untold: list[int] = field(default_factory=list)
    _told_s: float = -math.inf
    _num_noted: int = 0
    _sent: tuple[str, str] = ("", "")

    def begin(self, sequence: Sequence, tokenizer: ChatTokenizer) -> None:
        """Take the row of the batch that the answer comes from."""
        self.sequence = sequence
        if self.job.stream:
            request = sequence.request
            plain = not request.chat or request.sampling.schema is not None
            opened = not plain and tokenizer.opens_think(request.thinking)
            self._text = GrowingText(tokenizer.decode, request.sampling.stop, plain=plain, opened=opened)
            self._tokenizer = tokenizer

    def seen(self, token: int) -> str | None:
        """Take note of a token, and tell the client of what is certain."""
        if self._num_seen == 0:
            self.on_first(self.job)
        self._num_seen += 1
        if self.job.cancelled:
            return CANCELLED
        if self._text is not None:
            self._untold.append(token)
            if (tick := self.tick()) > self._told_s:
                self._text.add(self._untold)
                self._untold.clear()
                delta = self._more(*self._text.shown)
                if delta.content or delta.reasoning:
                    self._told_s = tick
                    self.job.emit(self._with_logprobs(delta))
        return None

    def ended(self, answer: Answer) -> None:
        """Tell the client of the whole answer."""
        rest = self._more(answer.reasoning, answer.text)
        noted = () if answer.logprobs is None else answer.logprobs[self._num_noted :]
        rest = Delta(self.index, rest.content, rest.reasoning, noted)
        cached = 0 if self.sequence is None else self.sequence.num_shared
        self.job.emit(Ended(self.index, answer, cached, rest))

    def _more(self, reasoning: str, content: str) -> Delta:
        """Return what was not sent yet."""
        known_reasoning, known = self._sent
        delta = Delta(self.index, content[len(known) :], reasoning[len(known_reasoning) :])
        self._sent = reasoning, content
        return delta

    def _with_logprobs(self, delta: Delta) -> Delta:
        processor = None if self.sequence is None else self.sequence.processor
        if processor is None or self._tokenizer is None:
            return delta
        noted = processor.logprobs(self._num_seen, self._tokenizer.decode, self._num_noted) or ()
        self._num_noted += len(noted)
        return Delta(delta.index, delta.content, delta.reasoning, noted)
