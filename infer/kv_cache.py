"""What the layers keep of several rows, left-padded, some of which may begin with a shared prefix.

Attention keeps keys and values (``RowsKVCache``), a gated delta net a state of fixed size
(``RowsRecurrentState``). Counts and paddings are plain integers here, so that no step waits for the device to
learn them. Both speak as mlx-vlm expects of a batch cache: its ``GenerationBatch`` calls ``filter``,
``extend`` and ``state``; attention calls ``update_and_fetch``, a delta net ``update_window`` and
``update_recurrent``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

STEP = 256  # columns by which a cache grows


@dataclass(frozen=True, slots=True, eq=False)
class KVRow:
    """Keys and values of one layer and one row, each ``(1, num_kv_heads, num_tokens, head_dim)``."""

    keys: mx.array
    values: mx.array

    def first(self, num_tokens: int) -> "KVRow":
        """Return those of the first tokens: they do not depend on what follows."""
        return KVRow(self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens])


def rounded_up(num_columns: int) -> int:
    """Return how many columns are allocated for so many in use."""
    return -(-num_columns // STEP) * STEP


class RowsKVCache:
    """Rows end at the same column; row ``i`` begins at column ``paddings[i]``.

    During prefill a row's new tokens begin at column ``starts[i]``: what is computed for columns before
    that is padding, and must not overwrite the prefix that lies there.
    """

    def __init__(self, paddings: Sequence[int], used: int = 0, starts: Sequence[int] = ()) -> None:
        """Begin with ``used`` columns, which ``put_prefixes`` fills."""
        self.paddings = list(paddings)
        self.used = used
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._starts = list(starts)

    def put_prefixes(self, prefixes: Sequence[KVRow | None], num_columns: int) -> None:
        """Copy each row's prefix to where the row begins, with room for ``num_columns``."""
        like = next(prefix for prefix in prefixes if prefix is not None)
        rows = [
            _placed(prefix or like.first(0), padding, rounded_up(num_columns))
            for prefix, padding in zip(prefixes, self.paddings, strict=True)
        ]
        self.keys = mx.concatenate([row.keys for row in rows])
        self.values = mx.concatenate([row.values for row in rows])

    def row(self, index: int, num_tokens: int) -> KVRow:
        """Return a copy of a row's first tokens."""
        keys, values = self._held()
        at = slice(self.paddings[index], self.paddings[index] + num_tokens)
        return KVRow(
            mx.contiguous(keys[index : index + 1, :, at]), mx.contiguous(values[index : index + 1, :, at])
        )

    @property
    def offset(self) -> int:
        """Columns in use: Qwen3-VL-MoE's attention cuts the mask here, and an integer needs no waiting."""
        return self.used

    @property
    def row_lengths(self) -> mx.array:
        """Number of real tokens of each row, int32 ``(batch,)``; negative where padding is not yet over."""
        return mx.array([self.used - padding for padding in self.paddings], dtype=mx.int32)

    @property
    def state(self) -> tuple[mx.array, ...]:
        """What must be evaluated before the cache is cut or joined."""
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
        """Return what the next columns may attend to: ``(batch, 1, columns, used)``, or "causal", or all."""
        if not any(self.paddings):
            return "causal" if num_columns > 1 else None
        seen = mx.arange(self.used + num_columns)
        real = (seen[None] >= mx.array(self.paddings)[:, None])[:, None, None]
        if num_columns == 1:
            return real
        asking = mx.arange(self.used, self.used + num_columns)[:, None]
        # A padding column attends to itself: it may attend to nothing else, and nothing gives NaN.
        return (real & (seen[None] <= asking)) | (seen[None] == asking)

    def filter(self, indices: mx.array) -> None:
        """Keep some rows; drop the columns that are padding in all of them, once they are many."""
        keys, values = self._held()
        self.keys, self.values = keys[indices], values[indices]
        self.paddings = [self.paddings[index] for index in indices.tolist()]  # type: ignore[union-attr,index]
        self._starts = []
        unused = min(self.paddings)
        if unused >= STEP // 2:  # what is cut must be copied before the next write, so not for a few
            self.keys, self.values = self.keys[:, :, unused:], self.values[:, :, unused:]
            self.paddings = [padding - unused for padding in self.paddings]
            self.used -= unused

    def extend(self, other: "RowsKVCache") -> None:
        """Add the rows of ``other``; the shorter of the two moves to the right."""
        used = max(self.used, other.used)
        capacity = rounded_up(used + 1)
        mine, theirs = self._aligned(used, capacity), other._aligned(used, capacity)
        self.keys = mx.concatenate([mine.keys, theirs.keys])
        self.values = mx.concatenate([mine.values, theirs.values])
        self.paddings = [padding + used - self.used for padding in self.paddings] + [
            padding + used - other.used for padding in other.paddings
        ]
        self.used = used
        self._starts = []

    def _aligned(self, used: int, capacity: int) -> KVRow:
        keys, values = self._held()
        row = KVRow(keys[:, :, : self.used], values[:, :, : self.used])
        return _placed(row, used - self.used, capacity)

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


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentRow:
    """The state of one gated delta net after the first ``num_tokens`` of one row.

    ``window`` ``(1, kernel - 1, channels)`` are the last inputs of its convolution; ``recurrent`` is float32
    ``(1, num_value_heads, value_dim, key_dim)``.
    """

    window: mx.array
    recurrent: mx.array
    num_tokens: int

    def first(self, num_tokens: int) -> "RecurrentRow":
        """Return the state after so many tokens, which must be all: it cannot be cut back."""
        if num_tokens != self.num_tokens:
            raise RuntimeError(
                f"a recurrent state after {self.num_tokens} tokens is not one after {num_tokens}"
            )
        return self


class RowsRecurrentState:
    """The states of one gated delta net, a row each. Padding leaves them as they are.

    Columns are those of the ``RowsKVCache`` beside it: a row's new tokens begin at column ``starts[i]``.
    """

    lengths = None  # mlx-vlm asks for them where rows are padded on the right

    def __init__(self, paddings: Sequence[int], used: int = 0, starts: Sequence[int] = ()) -> None:
        """Begin at column ``used``, with the states that ``put_prefixes`` gives, or none."""
        self._paddings, self._used, self._starts = list(paddings), used, list(starts)
        self.window: mx.array | None = None
        self.recurrent: mx.array | None = None

    def put_prefixes(self, prefixes: Sequence[RecurrentRow | None], num_columns: int) -> None:  # noqa: ARG002
        """Begin each row with the state after its prefix."""
        like = next(prefix for prefix in prefixes if prefix is not None)
        nothing = RecurrentRow(mx.zeros_like(like.window), mx.zeros_like(like.recurrent), 0)
        self.window = mx.concatenate([(prefix or nothing).window for prefix in prefixes])
        self.recurrent = mx.concatenate([(prefix or nothing).recurrent for prefix in prefixes])

    def row(self, index: int, num_tokens: int) -> RecurrentRow:
        """Return a copy of a row's state, at the moment when it has seen so many tokens."""
        seen = self._used - self._paddings[index]
        window, recurrent = self._held()
        at = mx.array([index])  # a slice would hold the rows beside it
        return RecurrentRow(window[at], recurrent[at], seen).first(num_tokens)

    @property
    def state(self) -> tuple[mx.array, ...]:
        """What must be evaluated before rows leave or join."""
        return () if self.window is None or self.recurrent is None else (self.window, self.recurrent)

    def __getitem__(self, index: int) -> mx.array | None:
        """Return the window, 0, or the recurrent state, 1, as mlx-vlm counts them."""
        return (self.window, self.recurrent)[index]

    def make_mask(self, num_columns: int) -> mx.array | None:
        """Return which of the next columns are real tokens, ``(batch, columns)``, or ``None`` for all."""
        paddings = self._next_paddings(num_columns)
        return mx.arange(num_columns)[None] >= mx.array(paddings)[:, None] if any(paddings) else None

    def update_window(self, index: int, inputs: mx.array, width: int, lengths: None = None) -> None:  # noqa: ARG002
        """Keep the last ``width`` of ``inputs``, ``(batch, width + columns, channels)``, window first.

        Where padding lies between a row's window and its first token, the window is moved to that token, in
        ``inputs`` itself: the convolution, which mlx-vlm computes next, must not see zeros in its place.
        """
        paddings = self._next_paddings(inputs.shape[1] - width)
        if any(paddings):
            at, begin = mx.arange(inputs.shape[1])[None], mx.array(paddings)[:, None]
            is_window = (at >= begin) & (at < begin + width)
            inputs[:] = mx.take_along_axis(inputs, mx.where(is_window, at - begin, at)[:, :, None], axis=1)
        self.window = mx.contiguous(inputs[:, -width:])

    def update_recurrent(
        self,
        index: int,  # noqa: ARG002
        num_columns: int,
        update: Callable[[mx.array | None, None], Any],
    ) -> tuple[mx.array, mx.array]:
        """Take ``update``'s new state; return its output and that state."""
        output, self.recurrent = update(self.recurrent, None)[:2]
        self._used += num_columns
        return output, self.recurrent

    def filter(self, indices: mx.array) -> None:
        """Keep some rows."""
        window, recurrent = self._held()
        self.window, self.recurrent = window[indices], recurrent[indices]
        self._paddings = self._starts = []

    def extend(self, other: "RowsRecurrentState") -> None:
        """Add the rows of ``other``."""
        (window, recurrent), (other_window, other_recurrent) = self._held(), other._held()
        self.window = mx.concatenate([window, other_window])
        self.recurrent = mx.concatenate([recurrent, other_recurrent])
        self._paddings = self._starts = []

    def _next_paddings(self, num_columns: int) -> list[int]:
        """Return how many of the next columns are padding, row by row."""
        return [min(max(start - self._used, 0), num_columns) for start in self._starts]

    def _held(self) -> tuple[mx.array, mx.array]:
        if self.window is None or self.recurrent is None:
            raise RuntimeError("nothing is in this recurrent state yet")
        return self.window, self.recurrent


LayerRow = KVRow | RecurrentRow
RowsState = RowsKVCache | RowsRecurrentState
