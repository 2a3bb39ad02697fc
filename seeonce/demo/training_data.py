"""Drawn screens as model input: pixels, patches, questions, and batches of them. No torch."""

import io
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from seeonce.demo.checkpoint_files import (
    MAX_PIXELS,
    MERGE_SIZE,
    PATCH_SIZE,
    SYSTEM_PROMPTS,
    TEMPORAL_PATCH_SIZE,
)
from seeonce.demo.paint import LABEL_LEFT, LABEL_MIN_WIDTH, TITLE_BAR_HEIGHT
from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS, Truth, answers, change_answer, truth_of
from seeonce.demo.scene import APPS, TOPICS, sample_scene
from seeonce.demo.screens import draw_screen, size_of

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


FACTOR = PATCH_SIZE * MERGE_SIZE
NUM_PAIR_ROWS = 10

# How many values each column of `cell_truths` takes, zero included.
CELL_CLASSES = (len(APPS) + 1, len(TOPICS) + 1, 4, 3, len(TOPICS) + 1)
LABEL_COLUMN = 4

Pixels = npt.NDArray[np.uint8]
Patches = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images and packed rows about them.

    `patches` `(num_patches, 3 * 2 * 16 * 16)`, `grid_thw` `(num_images, 3)`, `cells` as in
    `cell_truths`; rows padded to `(num_rows, length)`: `ids`, `visual`, `labels`, `segments`;
    `positions` `(3, num_rows, length)`, `attention` `(num_rows, 1, length, length)`.
    """

    patches: Patches
    grid_thw: Integers
    ids: Integers
    positions: Integers
    attention: npt.NDArray[np.bool_]
    visual: Integers
    labels: Integers
    segments: Integers
    cells: Integers
    names: tuple[tuple[str, ...], ...]


def resized(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height after the processor's resize of a screen larger than the limit."""
    width, height = size
    beta = float(np.sqrt(width * height / MAX_PIXELS))
    return int(width / beta / FACTOR) * FACTOR, int(height / beta / FACTOR) * FACTOR


def truth_of_seed(seed: int) -> Truth:
    """Return the truth of the screen of `seed` without drawing it."""
    return truth_of(sample_scene(seed, size_of(seed)))


def draw_pixels(seed: int, degrade: bool) -> Pixels:
    """Return the screen as the vision tower sees it, `(height, width, 3)`.

    With `degrade`, every eighth screen went through JPEG, as recordings often did.
    """
    image = draw_screen(seed, size_of(seed)).image
    if degrade and seed % 8 == 5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
        image = Image.open(buffer).convert("RGB")
    return np.asarray(image.resize(resized(image.size), Image.Resampling.BICUBIC))


def _draw_training_pixels(seed: int) -> Pixels:
    return draw_pixels(seed, degrade=True)


def drawn_screens(seeds: range, folder: Path) -> Pixels:
    """Return the screens of `seeds`, memory-mapped, `(num_screens, 192, 320, 3)`; drawn once.

    Narrower screens leave the right end of their rows empty.
    """
    path = folder / f"screens_{seeds.start}_{seeds.stop}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(seeds), 192, 320, 3))
        with multiprocessing.get_context("spawn").Pool() as pool:
            for index, pixels in enumerate(pool.imap(_draw_training_pixels, seeds, chunksize=32)):
                array[index, :, : pixels.shape[1]] = pixels
        array.flush()
        partial.rename(path)
    pixels_on_disk: Pixels = np.load(path, mmap_mode="r")
    return pixels_on_disk


def cell_truths(truth: Truth) -> Integers:
    """Return what is true of each merged token, `(num_tokens, len(CELL_CLASSES))`.

    For the window in front at the centre of the token's cell: its application, its topic, its
    number in the answers, whether it has the focus. Zero stands for no window. The last column is
    the topic once more where its label lies, -100 elsewhere.
    """
    width, height = resized(truth.size)
    columns, rows = width // FACTOR, height // FACTOR
    cells = np.zeros((rows * columns, len(CELL_CLASSES)), dtype=np.int64)
    cells[:, LABEL_COLUMN] = IGNORED
    for cell in range(rows * columns):
        x = (cell % columns + 0.5) * truth.size[0] / columns
        y = (cell // columns + 0.5) * truth.size[1] / rows
        for number, window in enumerate(truth.windows, start=1):
            x0, y0, x1, y1 = window.box
            if x0 <= x < x1 and y0 <= y < y1:
                app, topic = APPS.index(window.app) + 1, TOPICS.index(window.topic) + 1
                cells[cell, :LABEL_COLUMN] = (app, topic, number, 2 if window.focused else 1)
                break
    for window in truth.windows:
        row = (window.box[1] + TITLE_BAR_HEIGHT // 2) * rows // truth.size[1]
        for x in (LABEL_LEFT, LABEL_LEFT + LABEL_MIN_WIDTH):
            column = (window.box[0] + x) * columns // truth.size[0]
            cells[row * columns + column, LABEL_COLUMN] = TOPICS.index(window.topic) + 1
    return cells


def questions_about(truth: Truth, rng: random.Random | None) -> list[Question]:
    """Return every question about one screen: the fixed texts, or random paraphrases with `rng`.

    The default prompt, the longest and the most used, is among them half of the time at least.
    """
    true = answers(truth)
    chosen = []
    for name, texts in QUESTIONS.items():
        text = texts[0] if rng is None or rng.random() < 0.4 else rng.choice(texts)
        chosen.append(Question(name, text, true[name]))
    return chosen


def questions_about_pair(before: Truth, after: Truth, rng: random.Random | None) -> list[Question]:
    """Return the two-frame question, once in its fixed text and, with `rng`, once paraphrased."""
    texts = [CHANGE_QUESTION[0]] + ([rng.choice(CHANGE_QUESTION[1:])] if rng else [])
    return [Question("change", text, change_answer(before, after)) for text in texts]


def patches_of(pixels: Pixels, shift: float = 0.0) -> Patches:
    """Return normalised patches `(num_patches, 3 * 2 * 16 * 16)` in the processor's order."""
    image = (pixels.astype(np.float32) + np.float32(shift)) / np.float32(127.5) - np.float32(1)
    rows, columns = image.shape[0] // FACTOR, image.shape[1] // FACTOR
    blocks = image.reshape(rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return blocks.repeat(TEMPORAL_PATCH_SIZE, axis=5).reshape(rows * columns * MERGE_SIZE**2, -1)


class BatchMaker:
    """Builds batches from drawn screens of consecutive seeds."""

    def __init__(self, seeds: range, screens: Pixels, tokenizer: Tokenizer) -> None:
        self._seeds, self._screens, self._packer = seeds, screens, RowPacker(tokenizer)

    def training_batches(self, num_couples: int, rng: random.Random) -> Iterator[Batch]:
        """Yield shuffled batches for ever; a couple is an even seed and the odd one after it."""
        while True:
            couples = list(range(0, len(self._seeds), 2))
            rng.shuffle(couples)
            for start in range(0, len(couples) - num_couples + 1, num_couples):
                chosen = couples[start : start + num_couples]
                yield self.batch(
                    [index for couple in chosen for index in (couple, couple + 1)], NUM_PAIR_ROWS, rng
                )

    def batch(self, indices: Sequence[int], num_pairs: int, rng: random.Random | None) -> Batch:
        """Return the batch of the screens at `indices`; without `rng`, only fixed texts."""
        images, patches, grids, start = [], [], [], 0
        for index in indices:
            width, height = resized(size_of(self._seeds[index]))
            image = BatchImage(start, height // FACTOR, width // FACTOR)
            images.append(image)
            patches.append(patches_of(self._screens[index, :, :width], rng.uniform(-5, 5) if rng else 0.0))
            grids.append([1, height // PATCH_SIZE, width // PATCH_SIZE])
            start += image.height * image.width
        truths = [truth_of_seed(self._seeds[index]) for index in indices]
        rows = [
            self._packer.single(image, questions_about(truth, rng), rng)
            for image, truth in zip(images, truths, strict=True)
        ]
        for before, after in self._pairs(len(indices), num_pairs, rng):
            questions = questions_about_pair(truths[before], truths[after], rng)
            rows.append(self._packer.pair(images[before], images[after], questions, rng))
        cells = np.concatenate([cell_truths(truth) for truth in truths])
        return _stack(rows, np.concatenate(patches), np.array(grids), cells)

    def _pairs(self, count: int, num_pairs: int, rng: random.Random | None) -> list[tuple[int, int]]:
        """Return pairs of positions: neighbours in time, two of any, seldom twice the same."""
        if rng is None:
            return [(2 * index, 2 * index + 1) for index in range(num_pairs)]
        pairs = []
        for _ in range(num_pairs):
            first = rng.randrange(count)
            kind = rng.random()
            pairs.append((first, first ^ 1 if kind < 0.6 else first if kind < 0.65 else rng.randrange(count)))
        return pairs


def _stack(rows: list[Row], patches: Patches, grid_thw: Integers, cells: Integers) -> Batch:
    """Pad rows to one length and build the attention mask of packed questions."""
    length = max(len(row.ids) for row in rows)

    def padded(arrays: list[Integers], value: int) -> Integers:
        widths = [[(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])] for array in arrays]
        filled = [
            np.pad(array, width, constant_values=value) for array, width in zip(arrays, widths, strict=True)
        ]
        return np.stack(filled, axis=-2)

    segments = padded([row.segments for row in rows], -1)
    shared = (segments == PREFIX_SEGMENT)[:, None, :]
    own = segments[:, :, None] == segments[:, None, :]
    causal = np.tri(length, dtype=np.bool_)
    return Batch(
        patches,
        grid_thw,
        padded([row.ids for row in rows], 0),
        padded([row.positions for row in rows], 0),
        ((shared | own) & causal)[:, None],
        padded([row.visual for row in rows], -1),
        padded([row.labels for row in rows], IGNORED),
        segments,
        cells,
        tuple(row.names for row in rows),
    )
