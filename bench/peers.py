"""What people use today, called as they call it: mlx-vlm's whole model with live encoding.

The answers of ``one_by_one`` are the right ones of every workload: one request at a time, live.
"""

from pathlib import Path
from typing import Any

from bench.stage import Model
from checkpoint.loading import cast, readable_folder


class LiveModel:
    """mlx-vlm's model and processor in the compute dtype of the encoder."""

    def __init__(self, model: Model) -> None:
        """Load and evaluate both halves."""
        import mlx.core as mx
        from mlx_vlm import load

        with readable_folder(model.folder, model.config) as path:
            self._model, self._processor = load(str(path), lazy=True)
        cast(self._model, model.spec.compute_dtype)
        mx.eval(self._model.parameters())

    def one_by_one(self, asked: list[tuple[Path, str]], max_tokens: int) -> list[str]:
        """Answer one request after the other with ``stream_generate``, greedily, each image encoded anew."""
        return [self._answer(image, question, max_tokens) for image, question in asked]

    def batched(self, asked: list[tuple[Path, str]], max_tokens: int, num_at_once: int) -> list[str]:
        """Answer with ``batch_generate``, so many requests a call."""
        from mlx_vlm import batch_generate

        texts: list[str] = []
        for start in range(0, len(asked), num_at_once):
            part = asked[start : start + num_at_once]
            response = batch_generate(
                self._model,
                self._processor,
                images=[str(image) for image, _ in part],
                prompts=[self._formatted(question) for _, question in part],
                max_tokens=max_tokens,
                verbose=False,
            )
            texts += response.texts
        return texts

    def _answer(self, image: Path, question: str, max_tokens: int) -> str:
        from mlx_vlm import stream_generate

        responses = stream_generate(
            self._model,
            self._processor,
            self._formatted(question),
            [str(image)],
            max_tokens=max_tokens,
            temperature=0.0,
        )
        return "".join(response.text for response in responses)

    def _formatted(self, question: str) -> Any:
        from mlx_vlm.prompt_utils import apply_chat_template

        return apply_chat_template(self._processor, self._model.config, question, num_images=1)
