"""Choosing the next token: greedy, or seeded so that an answer does not depend on its neighbours.

The most likely token is taken of every row, and a request that samples brings a logits
processor that adds Gumbel noise to its own row (argmax of log p + Gumbel noise is a draw from p). The
noise of a token depends on (seed, keys of the frames, prompt, step) alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from cache.base.errors import InputError
from cache.key import EntryKey
from checkpoint.backend import import_mlx

MOST_LOGPROBS = 20
_LEAST_TEMPERATURE = 1e-3
_LEAST_PENALTY, _MOST_PENALTY = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, when an answer ends, and what is noted of it.

    ``temperature`` 0 is greedy. ``top_p`` keeps the most likely share, ``min_p`` what has at least that
    share of the best token's probability, ``top_k`` so many of the best (0: all). ``repetition_penalty``
    above 1 makes tokens less likely that are among the last ``repetition_window`` of prompt and answer. A
    ``stop`` string ends the answer before itself. ``logprobs`` asks for log-probabilities, with so many of
    the most likely tokens beside each. ``schema`` is the text of a JSON Schema that answers follow, or
    "description" (``infer.schema``).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 20
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: str | None = None

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
        if self.top_k < 0:
            raise InputError(f"--top-k is {self.top_k}; expected 0 (all tokens) or more.")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"--min-p is {self.min_p}; expected 0 to 1.")
        self._check_rest()

    def _check_rest(self) -> None:
        if not _LEAST_PENALTY <= self.repetition_penalty <= _MOST_PENALTY:
            raise InputError(
                f"--repetition-penalty is {self.repetition_penalty}; expected {_LEAST_PENALTY} to "
                f"{_MOST_PENALTY}, where 1 does nothing."
            )
        if self.repetition_window < 1:
            raise InputError(f"--repetition-window is {self.repetition_window}; expected at least 1.")
        if any(not text or text != text.encode("utf-8", "replace").decode() for text in self.stop):
            raise InputError("--stop is empty or not UTF-8; expected some text that ends an answer.")
        if self.stop and self.schema is not None:
            raise InputError(
                "--stop and --schema were both given: a schema says itself where an answer ends."
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise InputError(f"--logprobs is {self.logprobs}; expected 0 to {MOST_LOGPROBS}.")


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
        return self._filtered(logits.astype(mx.float32)) / self._sampling.temperature + noise

    def _filtered(self, logits: Any) -> Any:
        """Rule out tokens as mlx-vlm's sampler does: in its order, and before the temperature."""
        from mlx_vlm.sample_utils import apply_min_p, apply_top_k, apply_top_p

        mx, sampling = self._mx, self._sampling
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, sampling.top_p)
        if sampling.min_p > 0:
            logprobs = apply_min_p(logprobs, sampling.min_p)
        if 0 < sampling.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return logprobs


class RepetitionPenalty:
    """A logits processor that makes recent tokens less likely, those at the prompt's end included.

    Source: mlx-vlm's ``make_repetition_penalty`` (arXiv 1909.05858).
    """

    def __init__(self, sampling: Sampling) -> None:
        """Begin with no tokens."""
        self._mx = import_mlx()
        self._penalty = sampling.repetition_penalty
        self._recent: deque[int] = deque(maxlen=sampling.repetition_window)

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """Return ``(1, vocab)`` scores for the first token; ``tokens`` are the prompt's."""
        self._recent.extend(tokens.reshape(-1).tolist()[-(self._recent.maxlen or 1) :])
        return self._punished(logits)

    def process_last_token(self, last_token: int, logits: Any) -> Any:
        """Return ``(1, vocab)`` scores for the token after ``last_token``."""
        self._recent.append(last_token)
        return self._punished(logits)

    def _punished(self, logits: Any) -> Any:
        mx = self._mx
        tokens = mx.array([sorted(set(self._recent))])
        chosen = mx.take_along_axis(logits, tokens, axis=-1)
        punished = mx.where(chosen < 0, chosen * self._penalty, chosen / self._penalty)
        return mx.put_along_axis(logits, tokens, punished.astype(logits.dtype), axis=-1)


_PARTIAL = 4  # tokens that may hold the other bytes of the first character looked at


class StopStringWatch:
    """Ends one request with "stop" when a stop string is complete."""

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """Look for ``stop`` in what ``decode`` makes of tokens.

        A token has at least one byte, so as many tokens as the longest has bytes are enough. Special tokens,
        which have none, may hide one from here; ``before_stop`` finds it in the whole text.
        """
        self._stop, self._decode = tuple(stop), decode
        longest = max(len(text.encode()) for text in stop)
        self._tail: deque[int] = deque(maxlen=longest + _PARTIAL)

    def seen(self, token: int) -> str | None:
        """Take note of a token; "stop" ends the answer."""
        self._tail.append(token)
        text = self._decode(self._tail)
        return "stop" if any(stop in text for stop in self._stop) else None


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first stop string in it."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(found)] if found else text


LONGEST_PERIOD = 256
LEAST_SPAN = 96


def span(period: int) -> int:
    """Return how many tokens of a block of ``period`` tokens, repeated, are endless repetition."""
    return max(LEAST_SPAN, min(8 * period, max(256, 4 * period)))


# A run of tokens that equal the one a block before is one block shorter than what repeats.
_NEEDED = np.array([span(period) - period for period in range(1, LONGEST_PERIOD + 1)])


class RepetitionWatch:
    """Ends one request with "repetition". A step costs a comparison with the last 256 tokens."""

    def __init__(self) -> None:
        """Begin with no tokens."""
        self._last = np.full(LONGEST_PERIOD, -1, np.int64)  # the newest first
        self._runs = np.zeros(LONGEST_PERIOD, np.int64)

    def seen(self, token: int) -> str | None:
        """Take note of a token; "repetition" ends the answer."""
        self._runs = (self._runs + 1) * (self._last == token)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        return "repetition" if bool((self._runs >= _NEEDED).any()) else None
