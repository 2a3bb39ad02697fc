"""Everything private of mlx-vlm that pass two touches, in one place.

mlx-vlm 0.7.10 loses or swaps DeepStack features when it batches: they travel as a Python list, of
which a merged batch keeps the first row's, and which chunked prefill does not slice. Here they travel
as one dense array ``(batch, seq, num_deepstack, hidden)``, zero at text, under a name that mlx-vlm
pads, merges and slices along the sequence.

Relies on, each held by a contract test: ``deepstack_visual_embeds`` and ``position_ids`` are
sequence-aligned prompt kwargs; decoder layers are called as ``layer(h, mask, cache, position_ids,
position_embeddings)``; decoding passes ``rope_deltas`` and a batch cache whose ``offset`` counts each
row's real tokens; ``BatchGenerator`` admits requests only when ``prefill_batch_size`` slots are free;
a logits processor's ``process_last_token`` sees each row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.generate.ar import BatchGenerator
from mlx_vlm.models.base import LanguageModelOutput, create_attention_mask

from cache.entry import Features
from cache.errors import StoreError
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder
from checkpoint.loading import cast, load_model
from infer.hooks import RowProcessor
from infer.limits import BatchLimits
from infer.positions import mrope_positions
from infer.tokenizer import PromptTokens


class DenseDeepstackModel(nn.Module):  # type: ignore[name-defined,misc]
    """Qwen3-VL's decoder with sequence-aligned DeepStack, as ``BatchGenerator`` calls a model.

    Exposes neither ``config`` nor ``language_model``: with the first, mlx-vlm's prefix cache would drop
    every prefix that holds image tokens; with the second, decoding would go past this class.
    """

    def __init__(self, language_model: Any) -> None:
        """Wrap mlx-vlm's ``LanguageModel``."""
        super().__init__()
        self.decoder = language_model.model
        self.lm_head = None if language_model.args.tie_word_embeddings else language_model.lm_head

    @property
    def layers(self) -> list[Any]:
        """The decoder layers; mlx-vlm makes one KV cache for each."""
        return list(self.decoder.layers)

    def __call__(
        self,
        inputs: mx.array,
        *,
        cache: list[Any],
        inputs_embeds: mx.array | None = None,
        position_ids: mx.array | None = None,
        rope_deltas: mx.array | None = None,
        deepstack_visual_embeds: mx.array | None = None,
        logits_to_keep: int = 0,
        n_to_process: int = 0,  # noqa: ARG002 - mlx-vlm names the chunk's length in prefill
    ) -> LanguageModelOutput:
        """Run the decoder over ``inputs`` ``(batch, seq)`` and return logits ``(batch, kept, vocab)``."""
        h = self.decoder.embed_tokens(inputs) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = _decode_positions(cache[0].offset, rope_deltas, inputs.shape)
        mask = create_attention_mask(h, cache[0])
        rotary = self.decoder.layers[0].self_attn.rotary_emb
        embeddings = None if rotary.fused_apply else rotary(h, position_ids)
        deepstack = () if deepstack_visual_embeds is None else _layers_of(deepstack_visual_embeds)
        for index, (layer, layer_cache) in enumerate(zip(self.decoder.layers, cache, strict=True)):
            h = layer(h, mask, layer_cache, position_ids, embeddings)
            if index < len(deepstack):
                h = h + deepstack[index]
        h = self.decoder.norm(h)[:, -logits_to_keep:]
        logits = self.decoder.embed_tokens.as_linear(h) if self.lm_head is None else self.lm_head(h)
        return LanguageModelOutput(logits=logits)


def _layers_of(deepstack: mx.array) -> list[mx.array]:
    return [deepstack[:, :, index] for index in range(deepstack.shape[2])]


def _decode_positions(offset: mx.array, rope_deltas: mx.array | None, shape: Sequence[int]) -> mx.array:
    """Return ``(3, batch, seq)``: each row's number of real tokens, plus what its images left over."""
    batch, length = shape
    start = offset.reshape(-1, 1) if rope_deltas is None else offset.reshape(-1, 1) + rope_deltas
    return mx.broadcast_to((start + mx.arange(length))[None], (3, batch, length))


@dataclass(frozen=True, slots=True, eq=False)
class PromptInputs:
    """One prompt as the decoder takes it.

    ``inputs_embeds`` ``(1, seq, hidden)``, ``deepstack`` ``(1, seq, num_deepstack, hidden)``, both in
    the compute dtype; ``position_ids`` int32 ``(3, 1, seq)``; ``rope_deltas`` int32 ``(1, 1)``.
    """

    ids: tuple[int, ...]
    inputs_embeds: mx.array
    deepstack: mx.array
    position_ids: mx.array
    rope_deltas: mx.array


class LanguageHalf:
    """The language weights of a checkpoint in a compute dtype. Vision weights are never evaluated."""

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, dtype: str) -> None:
        """Load and evaluate the language weights.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        self.config = config
        language_model = load_model(folder, config).language_model
        cast(language_model, dtype)
        mx.eval(language_model.parameters())
        self.model = DenseDeepstackModel(language_model)

    def inputs(self, prompt: PromptTokens, features: Sequence[Features]) -> PromptInputs:
        """Put features, one per image of ``prompt`` in order, between the embeddings of its text.

        Raises:
            StoreError: an image has another number of tokens than its features.
        """
        text = self.model.decoder.embed_tokens(mx.array([prompt.ids]))
        hidden = text.shape[-1]
        num_deepstack = len(self.config.vision.deepstack_visual_indexes)
        embeds, deepstack, at = [], [], 0
        for span, feature in zip(prompt.images, features, strict=True):
            if feature.num_tokens != span.num_tokens:
                raise StoreError(
                    f"An image has {span.num_tokens} tokens in the manifest and {feature.num_tokens} in its "
                    "entry: run seeonce encode again."
                )
            stacked = _to_mlx(feature).astype(text.dtype)
            embeds += [text[:, at : span.start], stacked[None, 0]]
            deepstack += [
                mx.zeros((1, span.start - at, num_deepstack, hidden), text.dtype),
                stacked[1:].transpose(1, 0, 2)[None],
            ]
            at = span.start + span.num_tokens
        embeds.append(text[:, at:])
        deepstack.append(mx.zeros((1, len(prompt.ids) - at, num_deepstack, hidden), text.dtype))
        positions = mrope_positions(len(prompt.ids), prompt.images, self.config.vision.merge_size)
        return PromptInputs(
            ids=prompt.ids,
            inputs_embeds=mx.concatenate(embeds, axis=1),
            deepstack=mx.concatenate(deepstack, axis=1),
            position_ids=mx.array(positions.position_ids),
            rope_deltas=mx.array([[positions.rope_delta]], dtype=mx.int32),
        )


def _to_mlx(features: Features) -> mx.array:
    """Copy features bit for bit; bfloat16 comes as the uint16 of its bits."""
    array = mx.array(features.array)
    return array.view(mx.bfloat16) if features.dtype == "bfloat16" else array


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one request. ``finish_reason`` is "stop", "length", or ``None`` when more follow."""

    uid: int
    token: int
    finish_reason: str | None


class ContinuousBatch:
    """mlx-vlm's ``BatchGenerator`` over dense DeepStack: finished sequences leave, waiting ones join."""

    def __init__(self, half: LanguageHalf, limits: BatchLimits, stop_ids: frozenset[int]) -> None:
        """Begin an empty batch."""
        self._limits = limits
        # More prefilled together than may decode would never be admitted, and spin for ever.
        self.prefill_batch_size = min(limits.prefill_batch_size, limits.max_num_seqs)
        self._generator = BatchGenerator(
            half.model,
            _Stopping(stop_ids),
            completion_batch_size=limits.max_num_seqs,
            prefill_batch_size=self.prefill_batch_size,
            prefill_step_size=limits.prefill_step_size,
            compute_logprobs=False,
        )
        self.num_in_flight = 0

    @property
    def num_wanted(self) -> int:
        """How many requests to insert now, so that they are prefilled together and none waits long."""
        free = self._limits.max_num_seqs - self.num_in_flight
        return free if free >= self.prefill_batch_size else 0

    def insert(self, inputs: PromptInputs, max_tokens: int, processor: RowProcessor | None) -> int:
        """Queue a prompt and return its uid."""
        prompt_kwargs = {
            "inputs_embeds": inputs.inputs_embeds,
            "deepstack_visual_embeds": inputs.deepstack,
            "position_ids": inputs.position_ids,
            "rope_deltas": inputs.rope_deltas,
        }
        (uid,) = self._generator.insert(
            [list(inputs.ids)],
            max_tokens,
            prompt_kwargs=[prompt_kwargs],
            logits_processors=[[processor] if processor else None],
        )
        self.num_in_flight += 1
        return int(uid)

    def step(self) -> list[Token]:
        """Prefill a chunk or decode one token of every sequence; return the new tokens."""
        _, responses = self._generator.next()
        tokens = [Token(int(r.uid), int(r.token), r.finish_reason) for r in responses]
        self.num_in_flight -= sum(token.finish_reason is not None for token in tokens)
        return tokens

    def remove(self, uid: int) -> None:
        """Take out a sequence that is to end before its time; the others go on as they were."""
        if self._generator.remove(uid):
            self.num_in_flight -= 1

    def close(self) -> None:
        """Give back what the generator holds of the device."""
        self._generator.close()


class _Stopping:
    """What ``BatchGenerator`` asks of a tokenizer: when to stop."""

    def __init__(self, stop_ids: frozenset[int]) -> None:
        self.stopping_criteria = _StopAt(stop_ids)


class _StopAt:
    def __init__(self, stop_ids: frozenset[int]) -> None:
        self._stop_ids = stop_ids

    def add_eos_token_ids(self, ids: object = None) -> None:
        """Take no more ids: the checkpoint's are complete."""

    def __call__(self, token: int) -> bool:
        return token in self._stop_ids
