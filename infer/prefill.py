"""Prefill of several prompts together, in chunks, each from the end of the prefix that it shares, if any."""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Listed

import mlx.core as mx
import numpy as np

from infer.attention import Readers, attend
from infer.kv_cache import KVRow, LayerRow, RowsRecurrentState, rounded_up
from infer.model import DenseDeepstackModel, PromptInputs
from infer.sequence import Sequence


class RowsKVCache:
    """Keys and values of rows that end at the same column; row ``i`` begins at column ``paddings[i]``.

    A row's new tokens begin at column ``starts[i]``: what is computed for columns before that is padding, and
    must not overwrite what lies there of a prefix. Prefixes that are read in place are not in these columns.
    """

    def __init__(
        self,
        paddings: Listed[int],
        used: int = 0,
        starts: Listed[int] = (),
        readers: Readers | None = None,
        layer: int = 0,
    ) -> None:
        """Begin with ``used`` columns, which ``put_prefixes`` fills."""
        self._readers, self._layer = readers or Readers([]), layer
        self.paddings = list(paddings)
        self.used = used
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._starts = list(starts)

    def put_prefixes(self, prefixes: Listed[KVRow | None], num_columns: int) -> None:
        """Copy each row's prefix to where the row begins, with room for ``num_columns``."""
        like = next(prefix for prefix in prefixes if prefix is not None)
        rows = [
            _placed(prefix or like.between(0, 0), padding, rounded_up(num_columns))
            for prefix, padding in zip(prefixes, self.paddings, strict=True)
        ]
        self.keys = mx.concatenate([row.keys for row in rows])
        self.values = mx.concatenate([row.values for row in rows])

    def row(self, index: int, num_tokens: int) -> KVRow:
        """Return a row's first tokens, a view of the batch."""
        keys, values = self._held()
        at = slice(self.paddings[index], self.paddings[index] + num_tokens)
        return KVRow(keys[index : index + 1, :, at], values[index : index + 1, :, at])

    @property
    def offset(self) -> int:
        """Columns in use: Qwen3-VL-MoE's attention cuts the mask here, and an integer needs no waiting."""
        return self.used

    @property
    def state(self) -> tuple[mx.array, ...]:
        """What a chunk must have computed before the next."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append columns ``(batch, num_kv_heads, columns, head_dim)``; return all that are in use."""
        begin, end = self.used, self.used + keys.shape[2]
        self._reserve(end, keys, values)
        if self._starts and begin < max(self._starts):
            kept = mx.arange(begin, end)[None] < mx.array(self._starts)[:, None]
            old_keys, old_values = self._held()
            keys = mx.where(kept[:, None, :, None], old_keys[:, :, begin:end], keys)
            values = mx.where(kept[:, None, :, None], old_values[:, :, begin:end], values)
        held_keys, held_values = self._held()
        held_keys[:, :, begin:end] = keys
        held_values[:, :, begin:end] = values
        self.used = end
        return held_keys[:, :, :end], held_values[:, :, :end]

    def make_mask(
        self,
        num_columns: int,
        return_array: bool = False,  # noqa: ARG002
        window_size: int | None = None,  # noqa: ARG002
    ) -> mx.array | str | None:
        """Return what the next columns may attend to.

        ``(batch, 1, columns, used)``, or "causal", or ``None`` for all.
        """
        if not any(self.paddings) and (num_columns == 1 or not self._readers):
            return "causal" if num_columns > 1 else None
        seen = mx.arange(self.used + num_columns)
        real = (seen[None] >= mx.array(self.paddings)[:, None])[:, None, None]
        if num_columns == 1:
            return real
        asking = mx.arange(self.used, self.used + num_columns)[:, None]
        # A padding column attends to itself: it may attend to nothing else, and nothing gives NaN.
        return (real & (seen[None] <= asking)) | (seen[None] == asking)

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
    ) -> mx.array:
        """Attend to what ``update_and_fetch`` returned and to the prefixes before it."""
        return attend(queries, KVRow(keys, values), self._readers, self._layer, scale, mask)

    def _held(self) -> tuple[mx.array, mx.array]:
        if self.keys is None or self.values is None:
            raise RuntimeError("nothing is in this KV cache yet")
        return self.keys, self.values

    def _reserve(self, num_columns: int, keys: mx.array, values: mx.array) -> None:
        if self.keys is not None and self.keys.shape[2] >= num_columns:
            return
        capacity = rounded_up(num_columns)
        held = KVRow(keys[:, :, :0], values[:, :, :0])
        if self.keys is not None and self.values is not None:
            held = KVRow(self.keys[:, :, : self.used], self.values[:, :, : self.used])
        placed = _placed(held, 0, capacity)
        self.keys, self.values = placed.keys, placed.values


def _placed(row: KVRow, left: int, capacity: int) -> KVRow:
    """Put rows into ``capacity`` columns, after ``left`` empty ones."""
    right = capacity - left - row.keys.shape[2]
    if left == 0 and right == 0:
        return row
    width = [(0, 0), (0, 0), (left, right), (0, 0)]
    return KVRow(mx.pad(row.keys, width), mx.pad(row.values, width))


RowsState = RowsKVCache | RowsRecurrentState


class Prefill:
    """Runs a group of rows through the decoder, a chunk at a time."""

    def __init__(
        self,
        model: DenseDeepstackModel,
        sequences: list[Sequence],
        inputs: list[PromptInputs],
        chunk: int,
        *,
        is_timed: bool = False,
    ) -> None:
        """Lay prompts side by side and copy their prefixes; ``inputs`` are those of the tokens after them.

        With ``is_timed`` each step is waited for, and ``seconds`` is what they took.
        """
        self.is_timed, self.seconds = is_timed, 0.0
        self.sequences, self._inputs = sequences, inputs
        self.kept: dict[tuple[int, int], tuple[LayerRow, ...]] = {}
        self._model, self._chunk = model, chunk
        self._width = max(each.num_tokens for each in inputs)
        self._starts = [self._width - each.num_tokens for each in inputs]
        self._done = 0
        self._logits: mx.array | None = None
        self._readers = Readers([each.prefix if each.num_in_place else None for each in sequences])
        self._before = [each.num_in_place if each.prefix else 0 for each in sequences]  # not in the columns
        total = max(map(self._num_columns, range(len(sequences))))
        self.cache = [self._layer_cache(layer, total) for layer in range(len(model.layers))]
        self._ends = {
            (index, num_tokens): self._end_of_kept(index, num_tokens)
            for index, sequence in enumerate(sequences)
            for num_tokens in (sequence.num_kept, sequence.num_on_disk)
            if num_tokens
        }

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

    @property
    def num_tokens(self) -> int:
        """How many tokens are prefilled, those that rows share not among them."""
        return sum(each.num_tokens for each in self._inputs)

    def step(self) -> None:
        """Prefill the next chunk, and copy into ``kept`` what ends in it.

        ``kept`` is by row and number of tokens. The copy is taken at the end of the prompt or, where a layer
        has a recurrent state, at the token where the kept part ends; a chunk ends there, too.
        """
        started, begin = time.perf_counter(), self._done
        end = min(
            begin + self._chunk, self._width, *(column for column in self._ends.values() if column > begin)
        )
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
        if self.is_timed:
            mx.eval([cache.state for cache in self.cache], *([] if self._logits is None else [self._logits]))
            self.seconds += time.perf_counter() - started
        for (index, num_tokens), column in self._ends.items():
            if column == end:
                self.kept[index, num_tokens] = self._first_tokens(index, num_tokens)

    def own(self, index: int) -> list[LayerRow]:
        """Return what each layer keeps of a row's prompt, after the prefix that it reads in place now."""
        sequence = self.sequences[index]
        begin, end = (at - self._before[index] for at in (sequence.num_in_place, len(sequence.prompt.ids)))
        return [row.between(begin, end) if isinstance(row, KVRow) else row for row in self._rows(index, end)]

    def _first_tokens(self, index: int, num_tokens: int) -> tuple[LayerRow, ...]:
        """Return copies of what each layer keeps of a row's first tokens."""
        own = self._rows(index, num_tokens - (before := self._before[index]))
        prefix = self.sequences[index].prefix
        kept = tuple(
            row.after(prefix.in_place(layer))
            if before and prefix is not None and isinstance(row, KVRow)
            else row.copy()
            for layer, row in enumerate(own)
        )
        mx.eval([row.arrays for row in kept])  # a lazy copy would hold the whole batch
        return kept

    def _rows(self, index: int, num_columns: int) -> list[LayerRow]:
        num_tokens = self._before[index] + num_columns
        return [
            cache.row(index, num_columns if isinstance(cache, RowsKVCache) else num_tokens)
            for cache in self.cache
        ]

    def _end_of_kept(self, index: int, num_tokens: int) -> int:
        """Return the column after which a row's first tokens are copied."""
        if not self._model.is_recurrent:
            return self._width
        return self._starts[index] + num_tokens - self.sequences[index].num_shared

    def _layer_cache(self, layer: int, total: int) -> RowsState:
        paddings = [total - self._num_columns(index) for index in range(len(self.sequences))]
        used = total - self._width
        starts = [used + start for start in self._starts]
        prefixes = [
            each.prefix.rows[layer].between(before, each.num_shared) if each.prefix is not None else None
            for each, before in zip(self.sequences, self._before, strict=True)
        ]
        cache: RowsState
        if self._model.recurrent[layer]:
            seen = [padding - before for padding, before in zip(paddings, self._before, strict=True)]
            cache = RowsRecurrentState(seen, used, starts)
        else:
            cache = RowsKVCache(paddings, used, starts, self._readers, layer)
        if any(prefix is not None for prefix in prefixes):
            cache.put_prefixes(prefixes, total + 1)  # type: ignore[arg-type]  # a layer's rows are of its kind
        return cache

    def _num_columns(self, index: int) -> int:
        return self.sequences[index].num_shared - self._before[index] + self._inputs[index].num_tokens

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
