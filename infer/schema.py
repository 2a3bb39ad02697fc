"""Structured output: a grammar that an answer must follow, a JSON Schema's or the description line's."""

import json
import re
from typing import Any

import numpy as np

from cache.base.errors import InputError
from checkpoint.backend import import_mlx

DESCRIPTION = "description"

_WORDS = r"[^\s|\[\]\x00-\x1f\x7f\ufffd][^|\[\]\x00-\x1f\x7f\ufffd]"
_ITEM = r"[^\s|\[\],\"'\x00-\x1f\x7f\ufffd][^|\[\],\"'\x00-\x1f\x7f\ufffd]{0,39}"
_LIST = rf"\[({_ITEM}(, {_ITEM}){{0,7}})?\]"
# One expression: as several lexemes, the first would take the space before "|" for its own, and never end.
_LINE = (
    rf"answer: /description: {_WORDS}{{0,299}} \| activity: {_WORDS}{{0,79}} "
    rf"\| apps: {_LIST} \| topics: {_LIST}/"
)
# No spaces but one after a comma and a colon: a model cannot fill its answer with them.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def check_schema(text: str, where: str) -> None:
    """Raise ``InputError`` when a schema is not one that answers can be held to."""
    if text == DESCRIPTION:
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON ({error}): give a file of JSON Schema.") from error
    if not isinstance(found, dict):
        raise InputError(f'{where} is no JSON Schema: expected an object, as in {{"type": "object"}}.')
    problem = _problem(text)
    if problem:
        raise InputError(f"{where} cannot be followed: {problem[:200]}. Change the schema there.")


def _problem(schema: str) -> str:
    """Return what llguidance says against a schema, without the grammar that it quotes; empty if nothing."""
    from llguidance import LLMatcher

    said = str(LLMatcher.validate_grammar(grammar(schema, 1, numbered=False)))
    reason = said.partition("failed to compile JSON schema:")[2] or said
    return " ".join(re.split(r"\n *1 \| ", reason)[0].split())


def grammar(schema: str, num_frames: int, *, numbered: bool) -> Any:
    """Return llguidance's grammar of an answer; ``numbered`` has one for each frame, under its heading."""
    from llguidance import LLMatcher

    answer = _LINE if schema == DESCRIPTION else f"answer: %json {_compact(schema)}\n"
    lines = "start: answer"
    if numbered:
        lines = "start: " + ' "\\n" '.join(f'"Frame {n}: " answer' for n in range(1, num_frames + 1))
    return LLMatcher.grammar_from_lark(f"{lines}\n{answer}")


def _compact(schema: str) -> str:
    return json.dumps(json.loads(schema) | {"x-guidance": _COMPACT})


class Guide:
    """A tokenizer as llguidance reads it; made once for a checkpoint."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        """Walk over the whole vocabulary: about a second for a real one."""
        from llguidance.hf import from_tokenizer

        self._stop_ids = stop_ids
        self._tokenizer = from_tokenizer(tokenizer, eos_token=sorted(stop_ids))

    def processor(self, schema: str, num_frames: int, *, numbered: bool) -> "SchemaProcessor":
        """Return what holds one answer to ``schema``.

        A grammar that is too large to follow is an ``InputError`` of the first step.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar(schema, num_frames, numbered=numbered))
        return SchemaProcessor(matcher, self._tokenizer, self._stop_ids)


class SchemaProcessor:
    """Rules out every token that would leave the grammar; it ends where the grammar lets an answer end."""

    def __init__(self, matcher: Any, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        """Follow ``matcher`` from its beginning."""
        import llguidance.numpy

        self._mx = import_mlx()
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._matcher = matcher
        self._bits = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._num_tokens = tokenizer.vocab_size
        self._stop_ids = stop_ids

    def __call__(self, tokens: Any, logits: Any) -> Any:  # noqa: ARG002
        """Return ``(1, vocab)`` scores for the first token; ``tokens`` are the prompt's."""
        return self._masked(logits)

    def process_last_token(self, last_token: int, logits: Any) -> Any:
        """Return ``(1, vocab)`` scores for the token after ``last_token``.

        Raises:
            InputError: the grammar has no way on, or became too large to follow.
        """
        if not self._matcher.is_stopped():
            self._matcher.consume_token(last_token)
        return self._masked(logits)

    def _masked(self, logits: Any) -> Any:
        allowed = self._allowed()[: logits.shape[-1]]
        padded = np.zeros(logits.shape[-1], np.bool_)
        padded[: len(allowed)] = allowed
        return self._mx.where(self._mx.array(padded)[None], logits, -self._mx.inf)

    def _allowed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which tokens may come next; a matcher that has stopped leaves the stop tokens alone."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            ended = np.zeros(self._num_tokens, np.bool_)
            ended[[token for token in self._stop_ids if token < self._num_tokens]] = True
            return ended
        self._fill(self._matcher, self._bits, 0)
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:200]
            raise InputError(f"The schema cannot be followed any further ({reason}): simplify it.")
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._num_tokens].astype(
            np.bool_
        )
