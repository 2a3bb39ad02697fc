"""Drawn screens as model input: batches of images, and packed rows of questions about them. No torch."""

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
from seeonce.demo.paint import LABEL_LEFT, LABEL_MIN_WIDTH, TITLE_BAR_HEIGHT, paint
from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS, answers, change_answer
from seeonce.demo.scene import APPS, TOPICS, Scene, sample_scene
from seeonce.demo.screens import size_of

IGNORED = -100  # a label from which nothing is learned
FACTOR = PATCH_SIZE * MERGE_SIZE
NUM_PAIR_ROWS = 10
_SHARED = 0  # the segment that all questions of a row share

# How many values each column of `cell_truths` takes, zero included.
CELL_CLASSES = (len(APPS) + 1, len(TOPICS) + 1, 4, 3, len(TOPICS) + 1)
LABEL_COLUMN = 4

Integers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Patches = npt.NDArray[np.float32]
Question = tuple[str, str, str]
"""The id under which its accuracy is counted, its text, its true answer."""
ImagePlace = tuple[int, int, int]
"""Where an image's merged tokens start in its batch, and the height and width of its merged grid."""


@dataclass(frozen=True, slots=True)
class Row:
    """Packed tokens, or a stretch of them: arrays of `(num_tokens,)`, positions `(3, num_tokens)`.

    `segments` is 0 for what all questions share and k for the k-th question; `visual` is the
    index into the batch's merged tokens, -1 for text; `labels` is -100 where nothing is learned.
    """

    ids: Integers
    positions: Integers
    segments: Integers
    visual: Integers
    labels: Integers

    @property
    def end(self) -> int:
        """The position after the last one."""
        return int(self.positions.max()) + 1


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


class BatchMaker:
    """Builds batches from drawn screens of consecutive seeds."""

    def __init__(self, seeds: range, screens: Pixels, tokenizer: Tokenizer) -> None:
        self._seeds, self._screens, self._tokenizer = seeds, screens, tokenizer

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
        images, patches, grids, start = list[ImagePlace](), [], [], 0
        for index in indices:
            width, height = resized(size_of(self._seeds[index]))
            images.append((start, height // FACTOR, width // FACTOR))
            patches.append(patches_of(self._screens[index, :, :width], rng.uniform(-5, 5) if rng else 0.0))
            grids.append([1, height // PATCH_SIZE, width // PATCH_SIZE])
            start += images[-1][1] * images[-1][2]
        scenes = [_scene(self._seeds[index]) for index in indices]
        rows, asked = [], []
        for image, scene in zip(images, scenes, strict=True):
            asked.append(questions_about(scene, rng))
            rows.append(_pack(self._tokenizer, [_opening(rng), image], asked[-1]))
        for before, after in self._pairs(len(indices), num_pairs, rng):
            texts = [CHANGE_QUESTION[0], *([rng.choice(CHANGE_QUESTION[1:])] if rng else [])]
            asked.append([("change", text, change_answer(scenes[before], scenes[after])) for text in texts])
            rows.append(_pair_row(self._tokenizer, images[before], images[after], asked[-1], rng))
        names = tuple(tuple(name for name, _, _ in questions) for questions in asked)
        cells = np.concatenate([cell_truths(scene) for scene in scenes])
        return _stack(rows, names, np.concatenate(patches), np.array(grids), cells)

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


def _stack(
    rows: list[Row],
    names: tuple[tuple[str, ...], ...],
    patches: Patches,
    grid_thw: Integers,
    cells: Integers,
) -> Batch:
    """Pad rows to one length and build the attention mask of packed questions."""
    length = max(len(row.ids) for row in rows)

    def padded(arrays: list[Integers], value: int) -> Integers:
        widths = [[(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])] for array in arrays]
        filled = [
            np.pad(array, width, constant_values=value) for array, width in zip(arrays, widths, strict=True)
        ]
        return np.stack(filled, axis=-2)

    segments = padded([row.segments for row in rows], -1)
    shared = (segments == _SHARED)[:, None, :]
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
        names,
    )


def resized(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height after the processor's resize of a screen larger than the limit."""
    width, height = size
    beta = float(np.sqrt(width * height / MAX_PIXELS))
    return int(width / beta / FACTOR) * FACTOR, int(height / beta / FACTOR) * FACTOR


def _scene(seed: int) -> Scene:
    return sample_scene(seed, size_of(seed))


def _draw_pixels(seed: int) -> Pixels:
    """Return the screen as the vision tower sees it, `(height, width, 3)`; every eighth went through JPEG."""
    image = paint(_scene(seed))
    if seed % 8 == 5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
        image = Image.open(buffer).convert("RGB")
    return np.asarray(image.resize(resized(image.size), Image.Resampling.BICUBIC))


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
            for index, pixels in enumerate(pool.imap(_draw_pixels, seeds, chunksize=32)):
                array[index, :, : pixels.shape[1]] = pixels
        array.flush()
        partial.rename(path)
    pixels_on_disk: Pixels = np.load(path, mmap_mode="r")
    return pixels_on_disk


def patches_of(pixels: Pixels, shift: float = 0.0) -> Patches:
    """Return normalised patches `(num_patches, 3 * 2 * 16 * 16)` in the processor's order."""
    image = (pixels.astype(np.float32) + np.float32(shift)) / np.float32(127.5) - np.float32(1)
    rows, columns = image.shape[0] // FACTOR, image.shape[1] // FACTOR
    blocks = image.reshape(rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return blocks.repeat(TEMPORAL_PATCH_SIZE, axis=5).reshape(rows * columns * MERGE_SIZE**2, -1)


def cell_truths(scene: Scene) -> Integers:
    """Return what is true of each merged token, `(num_tokens, len(CELL_CLASSES))`.

    For the window in front at the centre of the token's cell: its application, its topic, its
    number in the answers, whether it has the focus. Zero stands for no window. The last column is
    the topic once more where its label lies, -100 elsewhere.
    """
    width, height = resized(scene.size)
    columns, rows = width // FACTOR, height // FACTOR
    cells = np.zeros((rows * columns, len(CELL_CLASSES)), dtype=np.int64)
    cells[:, LABEL_COLUMN] = IGNORED
    for cell in range(rows * columns):
        x = (cell % columns + 0.5) * scene.size[0] / columns
        y = (cell // columns + 0.5) * scene.size[1] / rows
        for number, window in enumerate(scene.windows, start=1):
            x0, y0, x1, y1 = window.box
            if x0 <= x < x1 and y0 <= y < y1:
                app, topic = APPS.index(window.pane.app) + 1, TOPICS.index(window.pane.topic) + 1
                cells[cell, :LABEL_COLUMN] = (app, topic, number, 2 if window.focused else 1)
                break
    for window in scene.windows:
        row = (window.box[1] + TITLE_BAR_HEIGHT // 2) * rows // scene.size[1]
        for x in (LABEL_LEFT, LABEL_LEFT + LABEL_MIN_WIDTH):
            column = (window.box[0] + x) * columns // scene.size[0]
            cells[row * columns + column, LABEL_COLUMN] = TOPICS.index(window.pane.topic) + 1
    return cells


def questions_about(scene: Scene, rng: random.Random | None) -> list[Question]:
    """Return every question about one screen: the fixed texts, or random paraphrases with `rng`.

    The default prompt, the longest and the most used, is among them half of the time at least.
    """
    true = answers(scene)
    chosen: list[Question] = []
    for name, texts in QUESTIONS.items():
        text = texts[0] if rng is None or rng.random() < 0.4 else rng.choice(texts)
        chosen.append((name, text, true[name]))
    return chosen


def _pair_row(
    tokenizer: Tokenizer,
    before: ImagePlace,
    after: ImagePlace,
    questions: Sequence[Question],
    rng: random.Random | None,
) -> Row:
    """Pack questions about two images, labelled with times or side by side."""
    opening = _opening(rng)
    if rng and rng.random() < 0.3:
        return _pack(tokenizer, [opening, before, after], questions)
    first, second = (0, 10) if rng is None else _times(rng)
    labels = f"{opening}Frame 1 ({first} s): ", f"\nFrame 2 ({second} s): "
    return _pack(tokenizer, [labels[0], before, labels[1], after, "\n"], questions)


def _opening(rng: random.Random | None) -> str:
    """Return what a conversation begins with; with `rng`, sometimes a system prompt."""
    system = ""
    if rng and rng.random() < 0.1:
        system = f"<|im_start|>system\n{rng.choice(SYSTEM_PROMPTS)}<|im_end|>\n"
    return f"{system}<|im_start|>user\n"


def _times(rng: random.Random) -> tuple[int | float, int | float]:
    first, step = rng.randint(0, 1200), rng.choice((1, 2, 5, 10, 10, 10, 30, 60))
    return (first + 0.5, first + step + 0.5) if rng.random() < 0.2 else (first, first + step)


def _pack(tokenizer: Tokenizer, parts: list[str | ImagePlace], questions: Sequence[Question]) -> Row:
    """Pack shared `parts`, then the questions; a trailing text part belongs to each question."""
    last = parts.pop() if isinstance(parts[-1], str) else ""
    spans: list[Row] = []
    position = 0
    for part in parts:
        if isinstance(part, str):
            spans.append(_text_span(tokenizer, part, position))
        else:
            spans.append(_image_span(tokenizer, part, position))
        position = spans[-1].end
    for number, (_, text, answer) in enumerate(questions, start=1):
        asked = f"{last}{text}<|im_end|>\n<|im_start|>assistant\n"
        spans.append(_text_span(tokenizer, asked, position, number))
        spans.append(_text_span(tokenizer, f"{answer}<|im_end|>", spans[-1].end, number, learned=True))
    return _joined(spans)


def _joined(spans: list[Row]) -> Row:
    return Row(
        np.concatenate([span.ids for span in spans]),
        np.concatenate([span.positions for span in spans], axis=1),
        np.concatenate([span.segments for span in spans]),
        np.concatenate([span.visual for span in spans]),
        np.concatenate([span.labels for span in spans]),
    )


def _text_span(
    tokenizer: Tokenizer, text: str, position: int, segment: int = _SHARED, learned: bool = False
) -> Row:
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    positions = np.broadcast_to(np.arange(position, position + len(ids)), (3, len(ids)))
    labels = ids if learned else np.full(len(ids), IGNORED)
    return Row(ids, positions, np.full(len(ids), segment), np.full(len(ids), -1), labels)


def _image_span(tokenizer: Tokenizer, image: ImagePlace, position: int) -> Row:
    """Return vision start, image tokens and vision end; an image advances by its longer side."""
    start, height, width = image
    rows, columns = np.divmod(np.arange(height * width), width)
    inside = Row(
        np.full(height * width, tokenizer.token_to_id("<|image_pad|>")),
        np.stack([np.zeros_like(rows), rows, columns]) + position + 1,
        np.full(height * width, _SHARED),
        np.arange(start, start + height * width),
        np.full(height * width, IGNORED),
    )
    return _joined(
        [
            _text_span(tokenizer, "<|vision_start|>", position),
            inside,
            _text_span(tokenizer, "<|vision_end|>", position + 1 + max(height, width)),
        ]
    )
