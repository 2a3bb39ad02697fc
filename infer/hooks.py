"""What a request brings into the batch: logits processors, a watch over its tokens, log-probabilities."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from cache.base.errors import SeeonceError
from infer.request import Candidate, TokenLogprob


class LogitsProcessor(Protocol):
    """Changes one row's logits before the most likely token is taken. One object serves one request.

    It runs one step ahead: after the token that ends an answer it is called once more, and what it
    returns or raises then is never looked at.
    """

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return ``(1, vocab)`` scores for the first token; ``tokens`` are all those of the prompt.

        Raises:
            SeeonceError: the request ends with this error, the others go on. So in ``process_last_token``.
        """

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:
        """Return ``(1, vocab)`` scores for the token after ``last_token``."""


class TokenWatch(Protocol):
    """Looks at each token of one request as it is handed out, and may end the answer there."""

    def seen(self, token: int) -> str | None:
        """Take note of a token; a word ends the answer with that ``finish_reason``, the token included.

        Never called for a stop token: the answer has ended. With ``max_tokens`` reached as well, the
        word given here wins.

        Raises:
            SeeonceError: the request ends with this error, the others go on.
        """


@dataclass(frozen=True, slots=True)
class RowHooks:
    """What one request brings: processors in the order in which they run, and what watches its tokens.

    Each watch sees every token; the first word that one of them says ends the answer.

    ``top_logprobs`` ``None`` asks for no log-probabilities, 0 for those of the tokens taken, more for as
    many of the most likely beside each.
    """

    processors: tuple[LogitsProcessor, ...] = ()
    watches: tuple[TokenWatch, ...] = ()
    top_logprobs: int | None = None

    @property
    def touches_logits(self) -> bool:
        """Whether anything must run at every step: the next token is then chosen once the last is known."""
        return bool(self.processors) or self.top_logprobs is not None


class RowProcessor:
    """All logits processors of one row as one; it never raises.

    A processor's error is kept in ``error``: raised amid a step, it would take the whole batch along.
    ``failed_at_once`` says that not even the first token is such as was asked for.
    """

    def __init__(self, hooks: RowHooks) -> None:
        """Run ``hooks.processors`` in order, and note log-probabilities if they are asked for."""
        self.error: str | None = None
        self.failed_at_once = False
        self._processors = hooks.processors
        self._top = hooks.top_logprobs
        self._raw: deque[mx.array] = deque()
        self._noted: list[tuple[int, mx.array, mx.array, mx.array]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return the scores for the first token."""
        scores = self._run(logits, lambda processor, scores: processor(tokens, scores))
        self.failed_at_once = self.error is not None
        return scores

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:
        """Return the scores for the token after ``last_token``."""
        return self._run(logits, lambda processor, scores: processor.process_last_token(last_token, scores))

    def taken(self, token: int) -> None:
        """Learn which token came of the oldest step not yet told, and note its log-probability."""
        if self._top is None:
            return
        raw = self._raw.popleft().astype(mx.float32)
        logprobs = (raw - mx.logsumexp(raw, axis=-1, keepdims=True))[0]
        best = mx.argsort(-logprobs)[: self._top]
        self._noted.append((token, logprobs[token], best, logprobs[best]))
        mx.async_eval(list(self._noted[-1][1:]))  # type: ignore[no-untyped-call]

    def logprobs(
        self, num_tokens: int, decode: Callable[[Sequence[int]], str], first: int = 0
    ) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities of tokens ``first`` to ``num_tokens``; ``None`` when not asked for."""
        if self._top is None:
            return None

        def one(token: int, own: mx.array, best: mx.array, logprobs: mx.array) -> TokenLogprob:
            pairs = zip(np.array(best).tolist(), np.array(logprobs).tolist(), strict=True)
            top = tuple(Candidate(other, decode([other]), logprob) for other, logprob in pairs)
            return TokenLogprob(token, decode([token]), float(np.array(own)), top)

        return tuple(one(*noted) for noted in self._noted[first:num_tokens])

    def _run(self, logits: mx.array, apply: Callable[[LogitsProcessor, mx.array], mx.array]) -> mx.array:
        if self._top is not None:
            self._raw.append(logits)
        scores = logits
        try:
            for processor in self._processors if self.error is None else ():
                scores = apply(processor, scores)
        except SeeonceError as error:
            self.error = str(error)
            return logits
        return scores
