"""What people use today, called as they call it: mlx-vlm's whole model, encoding live."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoint.loading import cast, load_model, readable_folder
from infer.limits import BatchLimits
from seeonce.bench.judge import ReferenceAnswer
from seeonce.bench.passes import Ask, Model, Tokens

EmbeddedRow = tuple[list[int], dict[str, Any]]
"""The token ids of a request, and what its embeddings are handed over in."""

_ONE_UNCHUNKED = BatchLimits(max_num_seqs=1, prefill_batch_size=1, prefill_step_size=2**30)


class LiveModel:
    """mlx-vlm's model and processor in the compute dtype of the encoder."""

    def __init__(self, model: Model) -> None:
        """Load and evaluate both halves."""
        import mlx.core as mx
        from mlx_vlm import load

        with readable_folder(model.checkpoint) as path:
            self._model, self._processor = load(str(path), lazy=True)
        cast(self._model, model.spec.compute_dtype)
        mx.eval(self._model.parameters())

    def one_by_one(self, asks: Sequence[Ask], max_tokens: int) -> list[str]:
        """Answer one request after the other with ``stream_generate``, greedily, each image encoded again."""
        return ["".join(step.text for step in self._steps(ask, max_tokens)) for ask in asks]

    def first_token(self, ask: Ask) -> tuple[int, Any]:
        """Return an answer's first token, and the log-probabilities ``(vocab,)`` that it was taken from."""
        first = next(self._steps(ask, 1))
        return int(first.token), first.logprobs

    def batched(self, asks: Sequence[Ask], max_tokens: int, num_at_once: int) -> list[str]:
        """Answer with ``batch_generate``, so many requests a call."""
        from mlx_vlm import batch_generate

        texts: list[str] = []
        for start in range(0, len(asks), num_at_once):
            part = asks[start : start + num_at_once]
            response = batch_generate(
                self._model,
                self._processor,
                images=[str(ask.image) for ask in part],
                prompts=[self._formatted(ask.question) for ask in part],
                max_tokens=max_tokens,
                verbose=False,
            )
            texts += response.texts
        return texts

    def embedded(self, asks: Sequence[Ask]) -> list[EmbeddedRow]:
        """Return the ids and prompt kwargs of each request for ``BatchGenerator``, evaluated."""
        return [self._embedded(ask) for ask in asks]

    def generated(self, rows: Sequence[EmbeddedRow], max_tokens: int, limits: BatchLimits) -> Tokens:
        """Decode ``max_tokens`` of each row with ``BatchGenerator``, no token stopping it."""
        steps = self._decode(rows, max_tokens, limits)
        return [tuple(int(step.token) for step in row) for row in steps]

    def unbatched(self, rows: Sequence[EmbeddedRow], max_tokens: int) -> list[ReferenceAnswer]:
        """Decode one row after the other, unchunked, which loses nothing, and note every margin."""
        return [
            ReferenceAnswer(
                tuple(int(step.token) for step in row),
                tuple(step.top_logprobs[0][1] - step.top_logprobs[1][1] for step in row),
            )
            for row in self._decode(rows, max_tokens, _ONE_UNCHUNKED, top_logprobs_k=2)
        ]

    def _steps(self, ask: Ask, max_tokens: int) -> Iterator[Any]:
        from mlx_vlm import stream_generate

        yield from stream_generate(
            self._model,
            self._processor,
            self._formatted(ask.question),
            [str(ask.image)],
            max_tokens=max_tokens,
            temperature=0.0,
        )

    def _formatted(self, question: str) -> Any:
        from mlx_vlm.prompt_utils import apply_chat_template

        return apply_chat_template(self._processor, self._model.config, question, num_images=1)

    def _decode(
        self, rows: Sequence[EmbeddedRow], max_tokens: int, limits: BatchLimits, top_logprobs_k: int = 0
    ) -> list[list[Any]]:
        from mlx_vlm.generate.ar import BatchGenerator

        at_once = limits.max_num_seqs or len(rows)
        generator = BatchGenerator(
            self._model.language_model,
            SimpleNamespace(stopping_criteria=_NeverStops()),
            completion_batch_size=at_once,
            prefill_batch_size=min(limits.prefill_batch_size, at_once),
            prefill_step_size=limits.prefill_step_size,
            compute_logprobs=top_logprobs_k > 0,
            top_logprobs_k=top_logprobs_k,
        )
        kwargs = [dict(kwargs) for _, kwargs in rows]
        uids = generator.insert([list(ids) for ids, _ in rows], max_tokens, prompt_kwargs=kwargs)
        steps: dict[int, list[Any]] = {uid: [] for uid in uids}
        while generator.has_work:
            for response in generator.next()[1]:
                steps[response.uid].append(response)
        generator.close()
        return [steps[uid] for uid in uids]

    def _embedded(self, ask: Ask) -> EmbeddedRow:
        import mlx.core as mx
        from mlx_vlm.utils import prepare_inputs

        inputs = prepare_inputs(
            self._processor,
            images=[str(ask.image)],
            prompts=self._formatted(ask.question),
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
        return inputs["input_ids"].tolist()[0], known


class _NeverStops:
    """The stopping criteria that ``BatchGenerator`` asks a tokenizer for."""

    def add_eos_token_ids(self, ids: object = None) -> None:
        """Take none."""

    def __call__(self, token: int) -> bool:  # noqa: ARG002
        return False


Inputs = Mapping[str, Any]
"""What mlx-vlm's image processor returns: ``pixel_values`` and ``image_grid_thw``."""


def bare_tower(model: Model) -> Callable[[Inputs], Any]:
    """Load mlx-vlm's vision tower alone; return what encodes a picture that mlx-vlm's processor prepared.

    The features, ``(1 + num_deepstack, num_tokens, hidden)``, are evaluated.
    """
    import mlx.core as mx

    tower = load_model(model.checkpoint).vision_tower
    cast(tower, model.spec.compute_dtype)
    mx.eval(tower.parameters())
    dtype = tower.patch_embed.proj.weight.dtype

    def encode(inputs: Inputs) -> Any:
        pixel_values = mx.array(inputs["pixel_values"]).astype(dtype)
        merged_tokens, deepstack = tower(pixel_values, mx.array(inputs["image_grid_thw"]))
        features = mx.stack([merged_tokens, *deepstack])
        mx.eval(features)
        return features

    return encode


def as_stored(features: Any) -> NDArray[Any]:
    """Return features as they are stored: bfloat16 as the uint16 of its bits."""
    import mlx.core as mx

    return np.array(features.view(mx.uint16) if features.dtype == mx.bfloat16 else features)
