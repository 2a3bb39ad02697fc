"""Questions about images as packed rows of tokens.

A row is one image (or two) and several questions about it: every question attends to the
images and to itself only, at the positions that it has when it is asked alone. So each
image is encoded once a step for all its questions. No torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from seeonce.demo.checkpoint_files import SYSTEM_PROMPTS

IGNORED = -100
PREFIX_SEGMENT = 0

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its true answer, and the id under which its accuracy is counted."""

    name: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Row:
    """Packed tokens: arrays of `(num_tokens,)`, positions `(3, num_tokens)`.

    `segments` is 0 for what all questions share and k for the k-th question; `visual` is the
    index into the batch's merged tokens, -1 for text; `labels` is -100 where nothing is learned.
    """

    ids: Integers
    positions: Integers
    segments: Integers
    visual: Integers
    labels: Integers
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BatchImage:
    """An image of a batch: where its merged tokens start, and its merged grid."""

    start: int
    height: int
    width: int


class RowPacker:
    """Builds rows with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._image_pad = tokenizer.token_to_id("<|image_pad|>")

    def single(self, image: BatchImage, questions: Sequence[Question], rng: random.Random | None) -> Row:
        """Return a row of questions about one image; with `rng`, sometimes after a system prompt."""
        return self._pack([self._opening(rng), image], questions)

    def pair(
        self, before: BatchImage, after: BatchImage, questions: Sequence[Question], rng: random.Random | None
    ) -> Row:
        """Return a row of questions about two images, labelled with times or side by side."""
        opening = self._opening(rng)
        if rng and rng.random() < 0.3:
            return self._pack([opening, before, after], questions)
        first, second = (0, 10) if rng is None else _times(rng)
        parts: list[str | BatchImage] = [
            f"{opening}Frame 1 ({first} s): ",
            before,
            f"\nFrame 2 ({second} s): ",
            after,
            "\n",
        ]
        return self._pack(parts, questions)

    def _opening(self, rng: random.Random | None) -> str:
        system = ""
        if rng and rng.random() < 0.1:
            system = f"<|im_start|>system\n{rng.choice(SYSTEM_PROMPTS)}<|im_end|>\n"
        return f"{system}<|im_start|>user\n"

    def _pack(self, parts: list[str | BatchImage], questions: Sequence[Question]) -> Row:
        """Pack shared `parts`, then the questions; a trailing text part belongs to each question."""
        last = parts.pop() if isinstance(parts[-1], str) else ""
        spans: list[_Span] = []
        position = 0
        for part in parts:
            span = (
                self._image_span(part, position)
                if isinstance(part, BatchImage)
                else self._text_span(part, position)
            )
            spans.append(span)
            position += span.advance
        for number, question in enumerate(questions, start=1):
            asked = f"{last}{question.text}<|im_end|>\n<|im_start|>assistant\n"
            spans.append(self._text_span(asked, position, number))
            spans.append(
                self._text_span(f"{question.answer}<|im_end|>", position + spans[-1].advance, number, True)
            )
        return Row(
            np.concatenate([span.ids for span in spans]),
            np.concatenate([span.positions for span in spans], axis=1),
            np.concatenate([span.segments for span in spans]),
            np.concatenate([span.visual for span in spans]),
            np.concatenate([span.labels for span in spans]),
            tuple(question.name for question in questions),
        )

    def _text_span(
        self, text: str, position: int, segment: int = PREFIX_SEGMENT, learned: bool = False
    ) -> "_Span":
        ids = np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        positions = np.broadcast_to(np.arange(position, position + len(ids)), (3, len(ids)))
        nothing = np.full(len(ids), -1)
        labels = ids if learned else np.full(len(ids), IGNORED)
        return _Span(ids, positions, np.full(len(ids), segment), nothing, labels, len(ids))

    def _image_span(self, image: BatchImage, position: int) -> "_Span":
        """Return vision start, image tokens and vision end; an image advances by its longer side."""
        start, end = self._text_span("<|vision_start|>", position), self._text_span("<|vision_end|>", 0)
        count = image.height * image.width
        rows, columns = np.divmod(np.arange(count), image.width)
        inside = np.stack([np.zeros(count, dtype=np.int64), rows, columns]) + position + 1
        longer = max(image.height, image.width)
        pads, prefix = np.full(count, self._image_pad), np.full(count + 2, PREFIX_SEGMENT)
        return _Span(
            np.concatenate([start.ids, pads, end.ids]),
            np.concatenate([start.positions, inside, end.positions + position + 1 + longer], axis=1),
            prefix,
            np.concatenate([[-1], np.arange(image.start, image.start + count), [-1]]),
            np.full(count + 2, IGNORED),
            longer + 2,
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of a row, and how far it moves the position."""

    ids: Integers
    positions: Integers
    segments: Integers
    visual: Integers
    labels: Integers
    advance: int


def _times(rng: random.Random) -> tuple[int | float, int | float]:
    first, step = rng.randint(0, 1200), rng.choice((1, 2, 5, 10, 10, 10, 30, 60))
    return (first + 0.5, first + step + 0.5) if rng.random() < 0.2 else (first, first + step)
