"""One request inside the engine, from its arrival to its last token."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cache.base.errors import SeeonceError
from cache.key import EntryKey
from infer.hooks import RowHooks, RowProcessor, TokenWatch
from infer.prefixes import PrefixName, SharedPrefix
from infer.request import Request
from infer.sampling import SeededDraw
from infer.tokenizer import PromptTokens


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and its tokens: those of its prompt, and those that are decoded.

    Set when it is chosen for prefill, and counted from the start of the prompt: ``num_shared`` tokens come
    from ``prefix``, ``num_kept`` are kept for others that begin alike, ``num_on_disk`` for later runs. While
    it decodes, it reads the first ``num_in_place`` where the prefix lies and has no copy of them.
    ``prefix_name`` names what a cache on disk may have of it. It may still get ``num_to_come`` tokens.
    """

    request: Request
    prompt: PromptTokens
    keys: tuple[EntryKey, ...] = field(init=False)
    prefix: SharedPrefix | None = None
    num_shared: int = 0
    num_kept: int = 0
    num_on_disk: int = 0
    prefix_name: PrefixName | None = None
    num_in_place: int = 0
    num_to_come: int = 0
    processor: RowProcessor | None = None
    watches: tuple[TokenWatch, ...] = ()
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = self.request.keys

    def begin(self, max_tokens: int, hooks: RowHooks) -> None:
        """Take a row of the batch, and what the request brings along."""
        self.num_to_come, self.watches = max_tokens, hooks.watches
        self.processor = RowProcessor(hooks) if hooks.touches_logits else None

    def take(self, token: int, stop_ids: frozenset[int]) -> str | None:
        """Take the next token; return why the sequence ends here, ``None`` when more follow.

        Raises:
            SeeonceError: a watch or a processor of this request failed; it ends here.
        """
        self.num_to_come -= 1
        if self.processor is not None and self.processor.error is not None and self.processor.failed_at_once:
            raise SeeonceError(self.processor.error)
        if token in stop_ids:
            return "stop"
        self.tokens.append(token)
        if self.processor is not None:
            self.processor.taken(token)
        words = [watch.seen(token) for watch in self.watches]
        word = next((word for word in words if word is not None), None)
        if word is not None or self.num_to_come == 0:
            return word or "length"
        if self.processor is not None and self.processor.error is not None:
            # The next token is decoded already: an error on the way to it ends the request here.
            raise SeeonceError(self.processor.error)
        return None


HooksOf = Callable[[Sequence], RowHooks]
"""What a request brings along; an error that it raises becomes the answer of its request."""


def sampling_hooks(sequence: Sequence) -> RowHooks:
    """Return what draws a request's tokens; nothing for greedy decoding."""
    sampling = sequence.request.sampling
    if sampling.temperature == 0:
        return RowHooks()
    return RowHooks((SeededDraw(sampling, sequence.keys, sequence.prompt.ids),))
