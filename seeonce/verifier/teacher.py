"""Logits processors that watch a batch decode: what it thought of each token under a teacher.

Owns recording log-probabilities inside the real batched schedule. What they are compared with is
``seeonce.verifier.compare``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class Trace:
    """Per position the token taken, log-probabilities of the tokens asked for, the best token."""

    tokens: tuple[int, ...]
    logprobs: tuple[tuple[float, ...], ...]
    best_tokens: tuple[int, ...]


class Watcher:
    """Makes a row take the teacher's tokens; records what it thinks of those asked for at each step."""

    def __init__(self, teacher: Sequence[int], asked: Sequence[Sequence[int]]) -> None:
        """Watch a row that follows ``teacher``; ``asked`` are tokens for each of its steps."""
        self._teacher, self._asked = teacher, asked
        self._steps: list[tuple[mx.array, mx.array, mx.array]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record the first token; ``tokens`` are the prompt's."""
        return self.process_last_token(-1, logits)

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record a step of ``(1, vocab)`` logits and return those that choose the token."""
        # One step is decoded ahead of the last token; what it takes is never looked at.
        step = min(len(self._steps), len(self._teacher) - 1)
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        best = mx.argmax(logits, axis=-1)
        taken = mx.array([self._teacher[step]])
        self._steps.append((taken, logprobs[0, mx.array(list(self._asked[step]))], best))
        mx.async_eval(list(self._steps[-1]))  # type: ignore[no-untyped-call]
        return mx.where(mx.arange(logits.shape[-1])[None] == taken[:, None], 0.0, -mx.inf)

    def trace(self, num_tokens: int) -> Trace:
        """Return the first ``num_tokens`` steps."""
        steps = self._steps[:num_tokens]
        return Trace(
            tuple(_int(taken) for taken, _, _ in steps),
            tuple(tuple(map(float, np.array(logprobs))) for _, logprobs, _ in steps),
            tuple(_int(best) for _, _, best in steps),
        )


def _int(array: mx.array) -> int:
    return int(np.array(array).item())
