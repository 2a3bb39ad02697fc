"""What the engine is asked, and what it answers. Light: read without MLX."""

from dataclasses import dataclass, field

from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Text:
    """Words of the user; nothing in them is ever read as a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A frame that is shown at this place, from its stored features."""

    frame: FrameEntry


Segment = Text | Image


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; ``role`` is "user", "assistant" or "system"."""

    role: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One question: a user turn of texts and images, after a system text. ``id`` is the caller's own.

    ``earlier`` are the turns between the two. Without ``chat`` its text is a text that goes on, with no
    template around it.

    ``numbered`` tells that its frames are shown under their numbers, and each is to be answered for.
    ``thinking`` lets the model reason before it answers, where its template has a switch for that.
    """

    id: int
    segments: tuple[Segment, ...]
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    numbered: bool = False
    thinking: bool = False
    earlier: tuple[Turn, ...] = ()
    chat: bool = True

    @property
    def frames(self) -> tuple[FrameEntry, ...]:
        """The frames that it shows, in order."""
        segments = (*(segment for turn in self.earlier for segment in turn.segments), *self.segments)
        return tuple(segment.frame for segment in segments if isinstance(segment, Image))

    @property
    def keys(self) -> tuple[EntryKey, ...]:
        """Keys of the frames, in the order in which they are shown."""
        return tuple(frame.key for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come, and its natural log-probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer: what the model itself, before any processor, thought of it.

    ``top`` are the most likely tokens at this place, best first.
    """

    token: int
    text: str
    logprob: float
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. ``error`` says why there is no answer.

    ``text`` is without reasoning and ends before a stop string. ``finish_reason`` is "stop", "length",
    "error", or the word with which a watch ended it, such as "repetition". ``logprobs`` are those of all
    ``tokens``, ``None`` when nobody asked. An answer of an earlier run has no ``tokens``. ``reasoning`` is
    what the model thought before its text, "" when it did not.
    """

    text: str
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None
    tokens: tuple[int, ...] = ()
    reasoning: str = ""


def failed(problem: str, num_prompt_tokens: int = 0) -> Answer:
    """Return what comes of a request that cannot be answered."""
    return Answer("", "error", Usage(num_prompt_tokens, 0), error=problem)


def split_reasoning(text: str, *, opened: bool) -> tuple[str, str | None]:
    """Split a leading ``<think>…</think>`` from the answer.

    ``opened`` tells that the prompt opened the block. Reasoning that never ends is no answer: ``None``.
    """
    answer = text.strip()
    if not opened and not answer.startswith("<think>"):
        return "", answer
    reasoning, ended, after = answer.removeprefix("<think>").partition("</think>")
    return reasoning.strip(), after.strip() if ended else None
