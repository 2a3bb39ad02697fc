"""Answers that are known already, and where new ones are kept: the seam for a cache of answers.

An ask is named by a digest over everything that its answer depends on (``seeonce.runs.plan`` makes it:
language model, frames, prompt, system text, sampling, seed, schema), so whoever keeps replies needs to know
nothing of models or prompts. Before anything is decoded, pass two looks up every ask; what is found is
written to the run as if it had been decoded, and when all is found no model is loaded.
"""

from dataclasses import dataclass
from typing import NewType, Protocol

from seeonce.runs.run import TokenLogprob, Usage

AskId = NewType("AskId", str)
"""64 hex digits: the same digest means the same question to the same model, bit for bit."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one ask. ``error`` says why there is no answer.

    ``logprobs`` are ``None`` when nobody asked for them.
    """

    text: str
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None


class KnownAnswers(Protocol):
    """Where replies of earlier runs are found."""

    def find(self, ask: AskId) -> Reply | None:
        """Return the reply that was kept for an ask. It must not raise: what cannot be read is unknown."""

    def keep(self, ask: AskId, reply: Reply, recording: str) -> None:
        """Take a reply that was just decoded for a recording; never called for one with an error."""
