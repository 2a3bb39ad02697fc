"""Logits processors that watch a batch decode: what it gave each token, free or under a teacher.

Owns recording log-probabilities inside the real batched schedule. What they are compared with is
``verify.compare``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class Trace:
    """One position after another: the token taken, its log-probability, and the most likely token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    best_tokens: tuple[int, ...]


class Watcher:
    """Records each step of one row; with ``teacher``, makes it take the teacher's tokens."""

    def __init__(self, teacher: Sequence[int] | None = None) -> None:
        """Watch a row that decodes greedily, or one that follows ``teacher``."""
        self._teacher = teacher
        self._steps: list[tuple[mx.array, mx.array, mx.array]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record the first token; ``tokens`` are the prompt's."""
        return self.process_last_token(-1, logits)

    def process_last_token(self, last_token: int, logits: mx.array) -> mx.array:  # noqa: ARG002
        """Record a step of ``(1, vocab)`` logits and return those that choose the token."""
        step = len(self._steps)
        logits = logits.astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        best = mx.argmax(logits, axis=-1)
        taken = best
        if self._teacher is not None:
            # One step is decoded ahead of the last token; what it takes is never looked at.
            taken = mx.array([self._teacher[min(step, len(self._teacher) - 1)]])
        self._steps.append((taken, mx.take_along_axis(logprobs, taken[:, None], axis=-1)[0, 0], best))
        mx.async_eval(list(self._steps[-1]))  # type: ignore[no-untyped-call]
        return mx.where(mx.arange(logits.shape[-1])[None] == taken[:, None], 0.0, -mx.inf)

    def trace(self, num_tokens: int) -> Trace:
        """Return the first ``num_tokens`` steps."""
        steps = self._steps[:num_tokens]
        return Trace(
            tuple(_int(taken) for taken, _, _ in steps),
            tuple(float(np.array(logprob)) for _, logprob, _ in steps),
            tuple(_int(best) for _, _, best in steps),
        )


def _int(array: mx.array) -> int:
    return int(np.array(array).item())
