"""Choosing the next token: greedy, or seeded so that an answer does not depend on its neighbours.

A batch shares one sampler in mlx-vlm. Ours is argmax, and a request that samples brings a logits
processor that adds Gumbel noise to its own row (argmax of log p + Gumbel noise is a draw from p). The
noise of a token depends on (seed, keys of the frames, prompt, step) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from cache.errors import InputError
from cache.key import EntryKey
from checkpoint.backend import import_mlx

_LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_p`` keeps the most likely share."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _LEAST_TEMPERATURE <= self.temperature <= 100:
            raise InputError(
                f"--temperature is {self.temperature}; expected 0 (greedy), or {_LEAST_TEMPERATURE} to 100."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; expected a whole number of 64 bits.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}; expected more than 0 and at most 1.")
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens is {self.max_tokens}; expected at least 1.")


class SeededDraw:
    """A logits processor of one request: its argmax is a draw from the request's own distribution."""

    def __init__(self, sampling: Sampling, keys: Sequence[EntryKey], prompt_ids: Sequence[int]) -> None:
        """Derive the request's random stream from its seed, frames and prompt."""
        self._mx = import_mlx()
        self._sampling = sampling
        hasher = blake3(derive_key_context="seeonce 2026-11 sampling, version 1")
        for part in (sampling.seed.to_bytes(16, "little", signed=True), *(key.raw for key in keys)):
            hasher.update(len(part).to_bytes(8, "little") + part)
        for token in prompt_ids:
            hasher.update(token.to_bytes(4, "little"))
        self._stream = hasher.digest()
        self._step = 0

    def __call__(self, tokens: Any, logits: Any) -> Any:  # noqa: ARG002
        """Return ``(1, vocab)`` scores for the first token; ``tokens`` are the prompt's."""
        return self.process_last_token(-1, logits)

    def process_last_token(self, last_token: int, logits: Any) -> Any:  # noqa: ARG002
        """Return ``(1, vocab)`` scores for the next token."""
        mx = self._mx
        digest = blake3(self._stream + self._step.to_bytes(8, "little")).digest()
        self._step += 1
        noise = mx.random.gumbel(logits.shape, key=mx.random.key(int.from_bytes(digest[:8], "little")))
        scaled = logits.astype(mx.float32) / self._sampling.temperature
        return self._keep_top_p(scaled) + noise

    def _keep_top_p(self, logits: Any) -> Any:
        """Rule out the tokens beyond the smallest set that holds ``top_p`` of the probability."""
        if self._sampling.top_p >= 1:
            return logits
        mx = self._mx
        order = mx.argsort(-logits, axis=-1)
        probabilities = mx.take_along_axis(mx.softmax(logits, axis=-1), order, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        kept = mx.put_along_axis(
            mx.zeros(logits.shape, mx.bool_), order, before < self._sampling.top_p, axis=-1
        )
        return mx.where(kept, logits, -mx.inf)
