"""Everything private of mlx-vlm that pass two touches, in one place.

mlx-vlm 0.7.10 loses or swaps DeepStack features when it batches: they travel as a Python list, of
which a merged batch keeps the first row's, and which chunked prefill does not slice. Here they travel
as one dense array ``(batch, seq, num_deepstack, hidden)``, zero at text, and prefill and decoding are ours
(``prefill``, ``decoding``): of mlx-vlm remain the decoder's layers.

Relies on, each held by a contract test: decoder layers are called as ``layer(h, mask, cache,
position_ids, position_embeddings)``; those of attention ask a cache for ``update_and_fetch`` and ``offset``
alone, and hand it to their module's ``scaled_dot_product_attention``; gated delta nets ask for ``[0]``,
``lengths``, ``update_window``, before their convolution, and ``update_recurrent``.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.generate.common import generation_stream, wired_limit
from mlx_vlm.models.base import LanguageModelOutput, create_attention_mask
from numpy.typing import NDArray

from cache.base.errors import StoreError
from cache.entry import Features
from checkpoint.config import Checkpoint
from checkpoint.family import LayerState
from checkpoint.loading import cast, load_model
from infer.kv_memory import spare_bytes
from infer.tokenizer import ImageSpan, PromptTokens, mrope_positions

FeaturesOf = Callable[[int], Features]


class DenseDeepstackModel(nn.Module):  # type: ignore[name-defined,misc]
    """A decoder with sequence-aligned DeepStack.

    ``recurrent`` tells of each layer whether it is a gated delta net; the others are attention.
    """

    def __init__(self, language_model: Any, layers: Iterable[LayerState]) -> None:
        """Wrap mlx-vlm's ``LanguageModel``, whose decoder has ``layers``."""
        super().__init__()
        self.recurrent = tuple(layer.is_recurrent for layer in layers)
        self.attention_index = self.recurrent.index(False)
        self.decoder = language_model.model
        for layer, is_recurrent in zip(self.decoder.layers, self.recurrent, strict=True):
            if not is_recurrent:
                _let_caches_attend(layer.self_attn)
        self.lm_head = None if language_model.args.tie_word_embeddings else language_model.lm_head

    @property
    def layers(self) -> list[Any]:
        """The decoder layers, each of which has a KV cache or a recurrent state."""
        return list(self.decoder.layers)

    @property
    def is_recurrent(self) -> bool:
        """Whether any layer has a recurrent state."""
        return any(self.recurrent)

    def __call__(
        self, inputs: mx.array, *, cache: list[Any], rope_deltas: mx.array | None = None
    ) -> LanguageModelOutput:
        """Decode one token ``(batch, 1)`` of each row; return logits ``(batch, 1, vocab)``."""
        position_ids = _decode_positions(cache[self.attention_index].row_lengths, rope_deltas, inputs.shape)
        h = self.hidden(self.decoder.embed_tokens(inputs), cache, position_ids)
        return LanguageModelOutput(logits=self.logits(h))

    def hidden(
        self,
        h: mx.array,
        cache: list[Any],
        position_ids: mx.array,
        deepstack: mx.array | None = None,
        *,
        only_last: bool = False,
    ) -> mx.array:
        """Run embeddings ``(batch, seq, hidden)`` through the decoder; return its last hidden states.

        ``position_ids`` ``(3, batch, seq)``; ``deepstack`` ``(batch, seq, num_deepstack, hidden)``.
        With ``only_last`` the last position's state alone is returned, ``(batch, 1, hidden)``.
        """
        rotation = self.rotation_of(h, position_ids)
        causal = create_attention_mask(h, cache[self.attention_index])
        real = cache[self.recurrent.index(True)].make_mask(h.shape[1]) if self.is_recurrent else None
        added = () if deepstack is None else _layers_of(deepstack)
        last = len(cache) - 1
        for index, (layer, layer_cache) in enumerate(zip(self.decoder.layers, cache, strict=True)):
            is_recurrent = self.recurrent[index]
            if index == last and only_last and h.shape[1] > 1:
                added = tuple(one[:, -1:] for one in added)
                if is_recurrent:
                    h = layer(h, real, layer_cache, position_ids, rotation)[:, -1:]
                else:
                    h = self._last_position(layer, h, layer_cache, position_ids)
            else:
                h = layer(h, real if is_recurrent else causal, layer_cache, position_ids, rotation)
            if index < len(added):
                h = h + added[index]
        return h

    def _last_position(self, layer: Any, h: mx.array, cache: Any, position_ids: mx.array) -> mx.array:
        """Run the last layer for one position; of those before it only keys and values are computed."""
        for part, where in ((h[:, :-1], position_ids[:, :, :-1]), (h[:, -1:], position_ids[:, :, -1:])):
            mask = create_attention_mask(part, cache)
            output: mx.array = layer(part, mask, cache, where, self.rotation_of(part, where))
        return output

    def rotation_of(self, h: mx.array, position_ids: mx.array) -> Any:
        rotary = self.decoder.layers[self.attention_index].self_attn.rotary_emb
        return None if rotary.fused_apply else rotary(h, position_ids)

    def logits(self, h: mx.array) -> mx.array:
        """Return logits ``(batch, seq, vocab)`` of last hidden states."""
        h = self.decoder.norm(h)
        head = self.decoder.embed_tokens.as_linear if self.lm_head is None else self.lm_head
        logits: mx.array = head(h)
        return logits


def _let_caches_attend(attention: Any) -> None:
    """Have a cache that has ``attend`` of its own asked for it, in the module of mlx-vlm's ``attention``.

    Other caches, such as mlx-vlm's own, are attended to as before.
    """
    module: Any = sys.modules[type(attention).__module__]
    original = module.scaled_dot_product_attention
    if getattr(original, "lets_caches_attend", False):
        return

    def attend(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **more: Any
    ) -> mx.array:
        if hasattr(cache, "attend"):
            return cache.attend(queries, keys, values, scale, mask)  # type: ignore[no-any-return]
        return original(queries, keys, values, cache, scale=scale, mask=mask, **more)  # type: ignore[no-any-return]

    attend.lets_caches_attend = True  # type: ignore[attr-defined]
    module.scaled_dot_product_attention = attend


def _layers_of(deepstack: mx.array) -> tuple[mx.array, ...]:
    return tuple(deepstack[:, :, index] for index in range(deepstack.shape[2]))


def _decode_positions(lengths: mx.array, rope_deltas: mx.array | None, shape: tuple[int, ...]) -> mx.array:
    """Return ``(3, batch, seq)``: each row's number of real tokens, plus what its images left over."""
    batch, length = shape
    start = lengths.reshape(-1, 1) if rope_deltas is None else lengths.reshape(-1, 1) + rope_deltas
    return mx.broadcast_to((start + mx.arange(length))[None], (3, batch, length))


@dataclass(frozen=True, slots=True, eq=False)
class PromptInputs:
    """A prompt's tokens as the decoder takes them, from some token to the last.

    ``inputs_embeds`` ``(1, seq, hidden)``, ``deepstack`` ``(1, seq, num_deepstack, hidden)``, both in
    the compute dtype; ``position_ids`` int32 ``(3, 1, seq)``; ``rope_delta`` is that of the whole prompt;
    ``images`` are the ``[begin, end)`` of image tokens among these.
    """

    inputs_embeds: mx.array
    deepstack: mx.array
    position_ids: NDArray[np.int32]
    rope_delta: int
    images: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """How many tokens are to be prefilled."""
        return int(self.inputs_embeds.shape[1])

    def has_image(self, begin: int, end: int) -> bool:
        """Whether any of these tokens are an image's."""
        return any(begin < image_end and image_begin < end for image_begin, image_end in self.images)


class LanguageModel:
    """The language weights of a checkpoint in a compute dtype. Vision weights are never evaluated."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        """Load and evaluate the language weights.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        self.checkpoint = checkpoint
        language_model = load_model(checkpoint).language_model
        cast(language_model, dtype)
        mx.eval(language_model.parameters())
        self.model = DenseDeepstackModel(language_model, checkpoint.text.layers)
        embedded = self._embed((0,))
        self._dtype, self._hidden = embedded.dtype, embedded.shape[-1]

    @staticmethod
    def stream() -> AbstractContextManager[object]:
        """Return a context in which everything is computed in mlx-vlm's own stream."""
        return mx.stream(generation_stream)

    @contextmanager
    def wired(self) -> Iterator[None]:
        """Keep the device's memory wired (Metal; nothing elsewhere), and bound the buffers kept for reuse.

        They are not given back after each prefill: that would wait for the decoding that is in flight.
        """
        before = mx.set_cache_limit(spare_bytes(self.weight_bytes))
        try:
            with wired_limit(self.model, [generation_stream]):
                yield
        finally:
            mx.set_cache_limit(before)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that are held."""
        weights: Any = tree_flatten(self.model.parameters())
        return sum(int(array.nbytes) for _, array in weights)

    @property
    def attention_shape(self) -> str:
        """Name what decides how fast attention is: widths of hidden states, keys and values, and the type."""
        layer = self.checkpoint.text.layers[self.model.attention_index]
        return f"{self._hidden} {layer.num_per_token} {self._dtype}"

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of the keys and values of one token, all layers."""
        return sum(layer.num_per_token for layer in self.checkpoint.text.layers) * self._dtype.size

    @property
    def row_bytes(self) -> int:
        """Bytes of the recurrent states of one row, all layers."""
        layers = self.checkpoint.text.layers
        num_window = sum(layer.num_window for layer in layers)
        return num_window * self._dtype.size + sum(layer.num_recurrent for layer in layers) * 4

    def inputs(self, prompt: PromptTokens, features_of: FeaturesOf, num_shared: int = 0) -> PromptInputs:
        """Put features between the embeddings of a prompt's text, leaving out its first ``num_shared``.

        ``features_of`` is given the number of an image, and asked for those only that are not left out.

        Raises:
            StoreError: an image has another number of tokens than its features.
        """
        embeds, deepstack, images, at = [], [], [], num_shared
        for number, span in enumerate(prompt.images):
            end = span.start + span.num_tokens
            if end <= num_shared:
                continue
            begin = max(span.start, num_shared)
            stacked = self._features(features_of(number), span)[:, begin - span.start :]
            embeds += [self._embed(prompt.ids[at:begin]), stacked[None, 0]]
            deepstack += [self._no_deepstack(begin - at), stacked[1:].transpose(1, 0, 2)[None]]
            images.append((begin - num_shared, end - num_shared))
            at = end
        embeds.append(self._embed(prompt.ids[at:]))
        deepstack.append(self._no_deepstack(len(prompt.ids) - at))
        position_ids, rope_delta = mrope_positions(
            len(prompt.ids), prompt.images, self.checkpoint.vision.merge_size
        )
        return PromptInputs(
            inputs_embeds=mx.concatenate(embeds, axis=1),
            deepstack=mx.concatenate(deepstack, axis=1),
            position_ids=position_ids[:, :, num_shared:],
            rope_delta=rope_delta,
            images=tuple(images),
        )

    def _features(self, features: Features, span: ImageSpan) -> mx.array:
        if features.num_tokens != span.num_tokens:
            raise StoreError(
                f"An image has {span.num_tokens} tokens in the manifest and {features.num_tokens} in its "
                "entry: run seeonce encode again."
            )
        return _to_mlx(features).astype(self._dtype)

    def _embed(self, ids: tuple[int, ...]) -> mx.array:
        embedded: mx.array = self.model.decoder.embed_tokens(mx.array([ids], dtype=mx.int32))
        return embedded

    def _no_deepstack(self, num_tokens: int) -> mx.array:
        num_deepstack = len(self.checkpoint.vision.deepstack_visual_indexes)
        return mx.zeros((1, num_tokens, num_deepstack, self._hidden), self._dtype)


def _to_mlx(features: Features) -> mx.array:
    """Copy features bit for bit; bfloat16 comes as the uint16 of its bits."""
    array = mx.array(features.array)
    return array.view(mx.bfloat16) if features.dtype == "bfloat16" else array
