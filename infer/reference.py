"""The reference that answers are held against: mlx-vlm itself, live, one request at a time.

Loads the whole model, as any user of mlx-vlm does, and shares nothing with pass two but the weight
files: not the tokeniser wrapper, not the adapter, not the store.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from cache.key import EncoderSpec
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder
from checkpoint.loading import cast, load_model, readable_folder


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """A greedy answer, stop token included: per position its log-probability and its winning margin.

    ``margins`` are differences of log-probability between the best and the second best token.
    """

    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]


class LiveReference:
    """mlx-vlm's model and processor, in the compute dtype of ``spec``."""

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, spec: EncoderSpec) -> None:
        """Load both halves.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        from mlx_vlm.utils import load_processor

        self._model = load_model(folder, config)
        cast(self._model, spec.compute_dtype)
        mx.eval(self._model.parameters())
        with readable_folder(folder, config) as path:
            self._processor: Any = load_processor(path, True, eos_token_ids=self._model.config.eos_token_id)
        self._processor.image_processor.min_pixels = spec.preprocessing.min_pixels
        self._processor.image_processor.max_pixels = spec.preprocessing.max_pixels

    def answer(self, image: Image.Image, prompt: str, max_tokens: int) -> LiveAnswer:
        """Answer one prompt about one RGB picture, greedily, encoding the picture live."""
        from mlx_vlm.generate import generate_step
        from mlx_vlm.prompt_utils import apply_chat_template
        from mlx_vlm.utils import prepare_inputs

        formatted = apply_chat_template(self._processor, self._model.config, prompt, num_images=1)
        inputs = prepare_inputs(
            self._processor,
            images=[image],
            prompts=formatted,
            add_special_tokens=False,
            image_token_index=self._model.config.image_token_index,
        )
        steps = generate_step(
            inputs["input_ids"],
            self._model,
            inputs["pixel_values"],
            inputs["attention_mask"],
            temperature=0.0,
            max_tokens=max_tokens,
            image_grid_thw=inputs["image_grid_thw"],
        )
        tokens: list[int] = []
        logprobs: list[float] = []
        margins: list[float] = []
        for token, row in steps:
            second, best = (float(value) for value in np.sort(np.array(row.astype(mx.float32)))[-2:])
            tokens.append(int(token))
            logprobs.append(best)
            margins.append(best - second)
            if self._processor.tokenizer.stopping_criteria(int(token)):
                break
        ids = tuple(inputs["input_ids"].tolist()[0])
        return LiveAnswer(ids, tuple(tokens), tuple(logprobs), tuple(margins))
