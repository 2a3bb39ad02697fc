"""The reference for features and answers: mlx-vlm itself, live, one request at a time.

It loads the whole model and opens pictures as any user of mlx-vlm does, and shares nothing with the passes
but the weight files and, where the user lowered them, the limits on pixels.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.entry import STORED_DTYPES, Features
from cache.key import EncoderSpec
from checkpoint.config import Checkpoint
from checkpoint.loading import cast, load_model, readable_folder
from sources.pixels import is_read_plainly

Picture = Image.Image | str
_NUM_REMEMBERED = 2  # pictures: as many as the longest prompt shows
NUM_TOP_TOKENS = 8
"""Tokens compared at each position: where the winner is certain, its own log-probability tells nothing."""


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """A greedy answer, stop token included: per position its most likely tokens and its winning margin.

    ``top_tokens`` are the most likely tokens of each position, the one taken first, ``top_logprobs`` theirs;
    ``margins`` are differences of log-probability between the best and the second best token; ``text``
    leaves the stop token out.
    """

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    top_tokens: tuple[tuple[int, ...], ...]
    top_logprobs: tuple[tuple[float, ...], ...]
    margins: tuple[float, ...]
    stopped: bool
    text: str

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The tokens of the answer, without the one that stopped it."""
        return self.tokens[:-1] if self.stopped else self.tokens


class LiveReference:
    """mlx-vlm's model and processor, in the compute dtype of ``spec``; each picture is encoded once."""

    def __init__(self, checkpoint: Checkpoint, spec: EncoderSpec, untouched: bool = False) -> None:
        """Load both halves.

        ``untouched`` leaves even the vision tower alone and answers through ``stream_generate``, as users of
        mlx-vlm do: each picture is encoded again for every question.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        from mlx_vlm.utils import load_processor

        self._spec = spec
        self._model = load_model(checkpoint)
        cast(self._model, spec.compute_dtype)
        mx.eval(self._model.parameters())
        self._untouched = untouched
        self.encoded = _EncodedOnce(self._model.vision_tower)
        if not untouched:
            self._model.vision_tower = self.encoded
        with readable_folder(checkpoint) as path:
            self._processor: Any = load_processor(path, True, eos_token_ids=self._model.config.eos_token_id)
        limits = self._processor.image_processor
        limits.max_pixels = min(limits.max_pixels, spec.preprocessing.max_pixels)
        limits.min_pixels = min(limits.min_pixels, limits.max_pixels)

    def picture(self, source: str, decoded: Image.Image) -> Picture:
        """Return what mlx-vlm is given: the image file itself, or the decoded frame of a video.

        Of a file that mlx-vlm would clip or take for sRGB, it is given the decoded picture as well.
        """
        path = Path(source)
        return source if os.path.isfile(path) and is_read_plainly(path) else decoded  # noqa: PTH113 (never raises)

    def features(self, picture: Picture) -> Features:
        """Encode a picture with mlx-vlm's own processor and vision tower."""
        inputs = self._inputs([picture], "")
        dtype = self._model.vision_tower.patch_embed.proj.weight.dtype
        grid = inputs["image_grid_thw"]
        merged, deepstack = self._model.vision_tower(inputs["pixel_values"].astype(dtype), grid)
        stacked = mx.stack([merged, *deepstack])
        name = self._spec.compute_dtype
        raw = np.array(stacked.view(mx.uint16) if name == "bfloat16" else stacked)
        time, height, width = (int(size) for size in grid.tolist()[0])
        array = np.ascontiguousarray(raw, dtype=STORED_DTYPES[name])
        return Features(array, name, (time, height, width), self._spec.preprocessing.merge_size)

    def answer(
        self,
        pictures: Sequence[Picture],
        prompt: str,
        max_tokens: int,
        num_chunks: int = 1,
        asked: tuple[tuple[int, ...], ...] = (),
    ) -> LiveAnswer:
        """Answer one prompt about some pictures, shown in their order, greedily, encoding them live.

        With several chunks the prompt is prefilled by mlx-vlm in as many parts: the same except for rounding.
        ``asked`` are the tokens to look at in place of the most likely ones, position by position.
        """
        inputs = self._inputs(pictures, prompt)
        tokens: list[int] = []
        top_tokens: list[tuple[int, ...]] = []
        top_logprobs: list[tuple[float, ...]] = []
        margins: list[float] = []
        stopped = False
        for token, row in self._steps(pictures, prompt, inputs, max_tokens, num_chunks):
            logprobs = np.array(row.astype(mx.float32))
            tokens.append(int(token))
            best = most_likely(logprobs, int(token))
            top = asked[len(tokens) - 1] if len(tokens) <= len(asked) else best
            top_tokens.append(top)
            top_logprobs.append(tuple(float(logprobs[which]) for which in top))
            margins.append(float(logprobs[best[0]] - logprobs[best[1]]))
            stopped = bool(self._processor.tokenizer.stopping_criteria(int(token)))
            if stopped:
                break
        text = self._processor.tokenizer.decode(
            tokens[:-1] if stopped else tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        ids = tuple(inputs["input_ids"].tolist()[0])
        return LiveAnswer(
            ids, tuple(tokens), tuple(top_tokens), tuple(top_logprobs), tuple(margins), stopped, text
        )

    def _steps(
        self, pictures: Sequence[Picture], prompt: str, inputs: Any, max_tokens: int, num_chunks: int
    ) -> Iterator[tuple[int, mx.array]]:
        """Yield each token with the log-probabilities ``(vocab,)`` that it was taken from."""
        from mlx_vlm.generate import generate_step, stream_generate

        chunk = -(-inputs["input_ids"].shape[1] // num_chunks)
        if not self._untouched:
            yield from generate_step(
                inputs["input_ids"],
                self._model,
                inputs["pixel_values"],
                inputs["attention_mask"],
                temperature=0.0,
                max_tokens=max_tokens,
                prefill_step_size=chunk,
                image_grid_thw=inputs["image_grid_thw"],
            )
            return
        responses = stream_generate(
            self._model,
            self._processor,
            self._formatted(pictures, prompt),
            list(pictures),
            temperature=0.0,
            max_tokens=max_tokens,
            prefill_step_size=chunk,
        )
        for response in responses:
            if response.finish_reason != "length":  # then the last token is handed out once more
                yield response.token, response.logprobs

    def _formatted(self, pictures: Sequence[Picture], prompt: str) -> Any:
        from mlx_vlm.prompt_utils import apply_chat_template

        return apply_chat_template(self._processor, self._model.config, prompt, num_images=len(pictures))

    def _inputs(self, pictures: Sequence[Picture], prompt: str) -> Any:
        from mlx_vlm.utils import prepare_inputs

        return prepare_inputs(
            self._processor,
            images=list(pictures),
            prompts=self._formatted(pictures, prompt),
            add_special_tokens=False,
            image_token_index=self._model.config.image_token_index,
        )


def most_likely(logprobs: NDArray[np.float32], taken: int) -> tuple[int, ...]:
    """Return the most likely tokens of ``(vocab,)`` log-probabilities, best first, behind the one taken."""
    num = min(NUM_TOP_TOKENS, len(logprobs))
    best = np.argpartition(logprobs, len(logprobs) - num)[-num:]
    ordered = best[np.argsort(-logprobs[best], kind="stable")]
    return (taken, *(int(token) for token in ordered if token != taken))[:num]


class _EncodedOnce(nn.Module):  # type: ignore[name-defined,misc]
    """A vision tower that encodes each picture alone, and once for several questions in a row."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.patch_embed = tower.patch_embed  # mlx-vlm asks it for the dtype
        self._tower = tower
        self._recent: deque[tuple[mx.array, mx.array, Any]] = deque(maxlen=_NUM_REMEMBERED)
        self.num_encoded = 0

    def __call__(self, pixel_values: mx.array, grid_thw: mx.array) -> Any:
        """Return merged tokens and DeepStack features of the pictures, one after the other."""
        sizes = [int(size) for size in np.array(grid_thw).prod(axis=1)]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        parts = [
            self._one(pixel_values[start : start + size], grid_thw[number : number + 1])
            for number, (start, size) in enumerate(zip(starts, sizes, strict=True))
        ]
        merged = mx.concatenate([features for features, _ in parts])
        layers = zip(*(deepstack for _, deepstack in parts), strict=True)
        return merged, [mx.concatenate(list(layer)) for layer in layers]

    def _one(self, pixel_values: mx.array, grid_thw: mx.array) -> Any:
        for pixels, grid, features in self._recent:
            if _same(pixels, pixel_values) and _same(grid, grid_thw):
                return features
        features = self._tower(pixel_values, grid_thw)
        self._recent.append((pixel_values, grid_thw, features))
        self.num_encoded += 1
        return features


def _same(left: mx.array, right: mx.array) -> bool:
    return left.dtype == right.dtype and bool(np.array(mx.array_equal(left, right)))
