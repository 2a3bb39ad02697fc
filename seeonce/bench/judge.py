"""Which answers are right: those of mlx-vlm, live, one request at a time, up to its own near-ties.

Batches round otherwise than single requests, so that in bfloat16 a near-tie may fall the other way, and the
answer goes on differently from there: right all the same. In float32 hardly any margin is that small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from seeonce.bench.passes import Ask, Encoded
from seeonce.runs.compare import MATCH_ABOVE, Said, likeness
from seeonce.verifier.differences import LOGPROB, first_difference, margin_at
from seeonce.verifier.reference import LiveReference

_LEAST_WORDS = 2
"""An answer needs so many to tell of one frame."""


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """A reference answer: its tokens without a stop token, and by what log-probability each won."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Judgement(Enum):
    """How an answer compares with the reference."""

    right = "right"
    near_tie = "near-tie"
    wrong = "wrong"


def judge_tokens(tokens: Sequence[int], reference: ReferenceAnswer, dtype: str) -> Judgement:
    """Judge the tokens of an answer that was computed in ``dtype``."""
    at = first_difference(tokens, reference.tokens)
    return Judgement.right if at is None else _judge(reference, at, dtype)


def judge_text(
    text: str, reference: ReferenceAnswer, dtype: str, decode: Callable[[Sequence[int]], str]
) -> Judgement:
    """Judge an answer of which only the text is known; white space around it says nothing."""
    if text.strip() == decode(reference.tokens).strip():
        return Judgement.right
    begun = [decode(reference.tokens[: 1 + at]).rstrip("\ufffd") for at in range(len(reference.tokens))]
    at = next((at for at, part in enumerate(begun) if not text.startswith(part)), len(begun))
    return _judge(reference, at, dtype)


def _judge(reference: ReferenceAnswer, at: int, dtype: str) -> Judgement:
    is_near_tie = margin_at(reference.margins, at) <= LOGPROB[dtype]
    return Judgement.near_tie if is_near_tie else Judgement.wrong


def live_answers(encoded: Encoded, questions: Sequence[str], max_tokens: int) -> dict[Ask, ReferenceAnswer]:
    """Ask mlx-vlm live, one question after the other, each picture encoded once; its model is freed again."""
    import mlx.core as mx

    model = encoded.model
    reference = LiveReference(model.checkpoint, model.spec)
    found = {}
    for ask in encoded.asks(questions):
        live = reference.answer([str(ask.image)], ask.question, max_tokens)
        found[ask] = ReferenceAnswer(live.answer_tokens, live.margins)
    del reference
    mx.clear_cache()
    return found


def matches(text: str, other: str) -> bool:
    """Tell whether two answers match as ``seeonce compare`` counts it."""
    return likeness(Said.of(text), Said.of(other)) > MATCH_ABOVE


def num_about_another_frame(asks: Sequence[Ask], texts: Sequence[str], reference: Sequence[str]) -> int:
    """Count answers that are what exactly one other frame is answered with, and not what their own is.

    An answer that several frames share tells of none of them, and neither does one of a single word, as "3"
    to a question for a number: who miscounts has not mixed up frames.
    """
    by_question: dict[str, list[tuple[Path, Said]]] = {}
    for ask, want in zip(asks, reference, strict=True):
        by_question.setdefault(ask.question, []).append((ask.image, Said.of(want)))
    return sum(
        _is_about_another_frame(ask.image, Said.of(text), by_question[ask.question])
        for ask, text in zip(asks, texts, strict=True)
    )


def _is_about_another_frame(image: Path, said: Said, answers: Sequence[tuple[Path, Said]]) -> bool:
    own = max(likeness(said, answer) for frame, answer in answers if frame == image)
    if own == 1 or len(said.words.split()) < _LEAST_WORDS:
        return False
    alike = {frame: likeness(said, answer) for frame, answer in answers if frame != image}
    for least, is_unlike_own in ((1.0, own < 1), (MATCH_ABOVE, own <= MATCH_ABOVE)):
        others = [frame for frame, ratio in alike.items() if ratio == 1 or ratio > least]
        if is_unlike_own and others:
            return len(others) == 1
    return False
