"""Prefill of several prompts together, in chunks, each from the end of the prefix that it shares, if any."""

from collections.abc import Iterable

import mlx.core as mx
import numpy as np

from infer.kv_cache import LayerRow, RowsKVCache, RowsRecurrentState, RowsState
from infer.model import DenseDeepstackModel, PromptInputs
from infer.sequence import Sequence


class Prefill:
    """Runs a group of rows through the decoder, a chunk at a time."""

    def __init__(
        self, model: DenseDeepstackModel, sequences: list[Sequence], inputs: list[PromptInputs], chunk: int
    ) -> None:
        """Lay prompts side by side and copy their prefixes; ``inputs`` are those of the tokens after them."""
        self.sequences, self._inputs = sequences, inputs
        self.kept: dict[int, tuple[LayerRow, ...]] = {}
        self._model, self._chunk = model, chunk
        self._width = max(each.num_tokens for each in inputs)
        self._starts = [self._width - each.num_tokens for each in inputs]
        self._done = 0
        self._logits: mx.array | None = None
        total = max(map(self._num_tokens, range(len(sequences))))
        self.cache = [self._layer_cache(layer, total) for layer in range(len(model.layers))]
        self._ends = [self._end_of_kept(index) for index in range(len(sequences))]

    @property
    def is_done(self) -> bool:
        """Whether every token is prefilled."""
        return self._logits is not None

    @property
    def logits(self) -> mx.array:
        """Logits ``(batch, vocab)`` of each row's last token, once all is done."""
        if self._logits is None:
            raise RuntimeError("the prompts are not prefilled yet")
        return self._logits

    @property
    def rope_deltas(self) -> list[int]:
        """What is added to the cache offset of each row for its next positions."""
        return [each.rope_delta for each in self._inputs]

    def step(self) -> None:
        """Prefill the next chunk; then ``kept`` has what others share of the rows that have come so far.

        It is copied at the end of the prompt, or, where a layer has a recurrent state, at the very token
        where what is shared ends: there a chunk ends, too.
        """
        begin = self._done
        end = min(begin + self._chunk, self._width, *(column for column in self._ends if column > begin))
        h = self._model.hidden(
            _columns([each.inputs_embeds for each in self._inputs], self._starts, begin, end),
            self.cache,
            mx.array(self._position_ids(begin, end)),
            self._deepstack(begin, end),
            only_last=end == self._width,
        )
        self._done = end
        if end == self._width:
            self._logits = self._model.logits(h)[:, -1]
        # Each chunk is computed now: else the graph of a long prompt holds all its activations at once.
        mx.async_eval([cache.state for cache in self.cache])  # type: ignore[no-untyped-call]
        for index, sequence in enumerate(self.sequences):
            if sequence.num_kept and self._ends[index] == end:
                self.kept[index] = self._first_tokens(index, sequence.num_kept)

    def _first_tokens(self, index: int, num_tokens: int) -> tuple[LayerRow, ...]:
        """Return copies of what each layer keeps of a row's first tokens."""
        kept = tuple(cache.row(index, num_tokens).copy() for cache in self.cache)
        mx.eval([row.arrays for row in kept])  # a lazy copy would hold the whole batch
        return kept

    def _end_of_kept(self, index: int) -> int:
        """Return the column after which a row's first tokens are copied."""
        sequence = self.sequences[index]
        if not sequence.num_kept or not self._model.is_recurrent:
            return self._width
        return self._starts[index] + sequence.num_kept - sequence.num_shared

    def _layer_cache(self, layer: int, total: int) -> RowsState:
        paddings = [total - self._num_tokens(index) for index in range(len(self.sequences))]
        used = total - self._width
        starts = [used + start for start in self._starts]
        prefixes = [
            each.prefix.rows[layer].first(each.num_shared) if each.prefix is not None else None
            for each in self.sequences
        ]
        kind = RowsRecurrentState if self._model.recurrent[layer] else RowsKVCache
        cache: RowsState = kind(paddings, used, starts)
        if any(prefix is not None for prefix in prefixes):
            cache.put_prefixes(prefixes, total + 1)  # type: ignore[arg-type]  # a layer's rows are of its kind
        return cache

    def _num_tokens(self, index: int) -> int:
        return self.sequences[index].num_shared + self._inputs[index].num_tokens

    def _position_ids(self, begin: int, end: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        positions = np.zeros((3, len(self._inputs), end - begin), np.int32)
        for index, (inputs, start) in enumerate(zip(self._inputs, self._starts, strict=True)):
            at = max(begin, start)
            if at < end:
                positions[:, index, at - begin :] = inputs.position_ids[:, 0, at - start : end - start]
        return positions

    def _deepstack(self, begin: int, end: int) -> mx.array | None:
        """Return DeepStack of these columns, or ``None`` where no row has an image in them."""
        shown = [
            inputs.has_image(begin - start, end - start)
            for inputs, start in zip(self._inputs, self._starts, strict=True)
        ]
        if not any(shown):
            return None
        return _columns([each.deepstack for each in self._inputs], self._starts, begin, end)


def _columns(arrays: Iterable[mx.array], starts: Iterable[int], begin: int, end: int) -> mx.array:
    """Return columns ``[begin, end)`` of rows ``(1, seq, …)`` that begin at ``starts``, zero before."""
    parts = []
    for array, start in zip(arrays, starts, strict=True):
        part = array[:, max(begin - start, 0) : max(end - start, 0)]
        missing = end - begin - part.shape[1]
        parts.append(mx.pad(part, [(0, 0), (missing, 0)] + [(0, 0)] * (part.ndim - 2)) if missing else part)
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]
