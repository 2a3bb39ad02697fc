"""Prefill of several prompts together, in chunks, each from the end of the prefix that it shares, if any."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from infer.hooks import RowProcessor
from infer.kv_cache import KVRow, RowsKVCache, SharedPrefix
from infer.model import DenseDeepstackModel, NewRow, PromptInputs


@dataclass(frozen=True, slots=True, eq=False)
class PrefillRow:
    """One prompt: ``inputs`` are those of its tokens after the first ``num_shared``, kept in ``prefix``."""

    uid: int
    inputs: PromptInputs
    max_tokens: int
    processor: RowProcessor | None = None
    prefix: SharedPrefix | None = None
    num_shared: int = 0


class Prefill:
    """Runs a group of rows through the decoder, a chunk at a time."""

    def __init__(self, model: DenseDeepstackModel, rows: Sequence[PrefillRow], chunk: int) -> None:
        """Lay the rows side by side and copy their prefixes."""
        self.rows = list(rows)
        self._model, self._chunk = model, chunk
        self._width = max(row.inputs.num_tokens for row in rows)
        self._starts = [self._width - row.inputs.num_tokens for row in rows]
        self._done = 0
        self._logits: mx.array | None = None
        total = max(row.num_shared + row.inputs.num_tokens for row in rows)
        self.cache = [self._layer_cache(layer, total) for layer in range(len(model.layers))]

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
    def new_rows(self) -> list[NewRow]:
        """The rows as decoding takes them."""
        return [
            NewRow(row.uid, row.inputs.ids, row.max_tokens, row.inputs.rope_delta, row.processor)
            for row in self.rows
        ]

    def step(self) -> None:
        """Prefill the next chunk."""
        begin, end = self._done, min(self._done + self._chunk, self._width)
        h = self._model.hidden(
            _columns([row.inputs.inputs_embeds for row in self.rows], self._starts, begin, end),
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

    def row_kv(self, index: int, num_tokens: int) -> tuple[KVRow, ...]:
        """Return copies of the keys and values of a row's first tokens, layer by layer."""
        kept = tuple(cache.row(index, num_tokens) for cache in self.cache)
        mx.eval([[row.keys, row.values] for row in kept])  # a lazy copy would hold the whole batch
        return kept

    def _layer_cache(self, layer: int, total: int) -> RowsKVCache:
        paddings = [total - row.num_shared - row.inputs.num_tokens for row in self.rows]
        used = total - self._width
        starts = [used + start for start in self._starts]
        cache = RowsKVCache(paddings, used, starts)
        prefixes = [
            row.prefix.rows[layer].first(row.num_shared) if row.prefix is not None else None
            for row in self.rows
        ]
        if any(prefix is not None for prefix in prefixes):
            cache.put_prefixes(prefixes, total + 1)
        return cache

    def _position_ids(self, begin: int, end: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        positions = np.zeros((3, len(self.rows), end - begin), np.int32)
        for index, (row, start) in enumerate(zip(self.rows, self._starts, strict=True)):
            at = max(begin, start)
            if at < end:
                positions[:, index, at - begin :] = row.inputs.position_ids[:, 0, at - start : end - start]
        return positions

    def _deepstack(self, begin: int, end: int) -> mx.array | None:
        """Return DeepStack of these columns, or ``None`` where no row has an image in them."""
        shown = [
            row.inputs.has_image(begin - start, end - start)
            for row, start in zip(self.rows, self._starts, strict=True)
        ]
        if not any(shown):
            return None
        return _columns([row.inputs.deepstack for row in self.rows], self._starts, begin, end)


def _columns(arrays: Sequence[mx.array], starts: Sequence[int], begin: int, end: int) -> mx.array:
    """Return columns ``[begin, end)`` of rows ``(1, seq, …)`` that begin at ``starts``, zero before."""
    parts = []
    for array, start in zip(arrays, starts, strict=True):
        part = array[:, max(begin - start, 0) : max(end - start, 0)]
        missing = end - begin - part.shape[1]
        parts.append(mx.pad(part, [(0, 0), (missing, 0)] + [(0, 0)] * (part.ndim - 2)) if missing else part)
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]
