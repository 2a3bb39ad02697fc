"""What people use today, called as they call it: mlx-vlm's whole model with live encoding.

The answers of ``one_by_one`` are the right ones of every workload: one request at a time, live.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.stage import Model, Tokens
from checkpoint.loading import cast, readable_folder
from infer.limits import BatchLimits


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


class StockBatches(LiveModel):
    """mlx-vlm's BatchGenerator, given embeddings that were made before the clock runs."""

    def rows(self, asked: Sequence[tuple[Path, str]]) -> list[tuple[list[int], dict[str, Any]]]:
        """Return ids and prompt kwargs of each request, evaluated."""
        return list(self._rows(asked))

    def answers(
        self, rows: Sequence[tuple[list[int], dict[str, Any]]], max_tokens: int, limits: BatchLimits
    ) -> Tokens:
        """Decode ``max_tokens`` of each row, no token stopping it."""
        from mlx_vlm.generate.ar import BatchGenerator

        generator = BatchGenerator(
            self._model.language_model,
            _NeverStops(),
            completion_batch_size=limits.max_num_seqs,
            prefill_batch_size=min(limits.prefill_batch_size, limits.max_num_seqs),
            prefill_step_size=limits.prefill_step_size,
            compute_logprobs=False,
        )
        kwargs = [dict(kwargs) for _, kwargs in rows]
        uids = generator.insert([list(ids) for ids, _ in rows], max_tokens, prompt_kwargs=kwargs)
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        while generator.has_work:
            for response in generator.next()[1]:
                tokens[response.uid].append(int(response.token))
        generator.close()
        return [tuple(tokens[uid]) for uid in uids]

    def _rows(self, asked: Sequence[tuple[Path, str]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        import mlx.core as mx
        from mlx_vlm.utils import prepare_inputs

        for image, question in asked:
            inputs = prepare_inputs(
                self._processor,
                images=[str(image)],
                prompts=self._formatted(question),
                add_special_tokens=False,
                image_token_index=self._model.config.image_token_index,
            )
            embedded = self._model.get_input_embeddings(
                inputs["input_ids"],
                inputs["pixel_values"],
                mask=inputs["attention_mask"],
                image_grid_thw=inputs["image_grid_thw"],
            )
            known = {name: value for name, value in embedded.to_dict().items() if value is not None}
            mx.eval(known)
            yield inputs["input_ids"].tolist()[0], known


class _NeverStops:
    """What ``BatchGenerator`` asks of a tokenizer."""

    class _Never:
        def add_eos_token_ids(self, ids: object = None) -> None:
            """Take none."""

        def __call__(self, token: int) -> bool:  # noqa: ARG002
            return False

    stopping_criteria = _Never()
