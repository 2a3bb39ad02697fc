"""What the layers keep of several rows: left-padded side by side in prefill, a slot each while they decode.

Attention keeps keys and values (``RowsKVCache``, ``SlotKVCache``), a gated delta net a state of fixed size
(``RowsRecurrentState``). Counts and paddings are plain integers here, so that no step waits for the device to
learn them. mlx-vlm's attention calls ``update_and_fetch``, its delta net ``update_window`` and
``update_recurrent``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

STEP = 64  # columns by which a cache grows


@dataclass(frozen=True, slots=True, eq=False)
class KVRow:
    """Keys and values of one layer and one row, each ``(1, num_kv_heads, num_tokens, head_dim)``."""

    keys: mx.array
    values: mx.array

    def first(self, num_tokens: int) -> "KVRow":
        """Return those of the first tokens: they do not depend on what follows."""
        return KVRow(self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens])

    def copy(self) -> "KVRow":
        """Return a copy, which holds nothing of the batch that it was cut from."""
        return KVRow(mx.contiguous(self.keys), mx.contiguous(self.values))

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """What is to be evaluated."""
        return self.keys, self.values


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
        """Return a row's first tokens, a view of the batch."""
        keys, values = self._held()
        at = slice(self.paddings[index], self.paddings[index] + num_tokens)
        return KVRow(keys[index : index + 1, :, at], values[index : index + 1, :, at])

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


class Slots:
    """How many tokens of its row each slot holds, alike in all layers; a free slot holds none.

    A free slot is computed along, as a row that begins with its next token, until another row is put there.
    """

    def __init__(self) -> None:
        """Begin with no slots."""
        self.lengths: list[int] = []
        self.ends = mx.array([], dtype=mx.int32)
        self.mask: mx.array | None = None

    @property
    def num_columns(self) -> int:
        """Columns in use once the next token of each row is written."""
        return max(self.lengths, default=0) + 1

    def begin_step(self) -> None:
        """Make what all layers need for the next token: where it is written, and what it may attend to."""
        self.ends = mx.array(self.lengths, dtype=mx.int32)
        alike = min(self.lengths) + 1 == self.num_columns
        self.mask = None if alike else (mx.arange(self.num_columns) <= self.ends[:, None])[:, None, None]


class SlotKVCache:
    """Keys and values of rows that decode: token ``j`` of the row in slot ``i`` lies in column ``j`` of it.

    A row is written into its slot and nothing else is touched.
    """

    def __init__(self, slots: Slots) -> None:
        """Begin with nothing; ``slots`` is shared by all layers."""
        self._slots = slots
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> int:
        """Columns in use, which mlx-vlm adds to others: an integer needs no waiting."""
        return self._slots.num_columns - 1

    @property
    def row_lengths(self) -> mx.array:
        """Number of tokens of each row, int32 ``(num_slots,)``."""
        return self._slots.ends

    @property
    def state(self) -> tuple[mx.array, ...]:
        """The arrays that are held."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    def resize(self, kept: list[int], num_slots: int, num_columns: int, like: KVRow | None = None) -> None:
        """Move the slots ``kept`` to the front of ``num_slots`` that have room for ``num_columns``.

        ``like`` is a row as they will be put there, needed where nothing is held yet.
        """
        like = like or KVRow(*self._held())
        capacity, used = rounded_up(num_columns), max((self._slots.lengths[slot] for slot in kept), default=0)

        def moved(held: mx.array | None, like: mx.array) -> mx.array:
            fresh = mx.zeros((num_slots, like.shape[1], capacity, like.shape[3]), like.dtype)
            if held is not None and kept:
                fresh[: len(kept), :, :used] = held[:, :, :used][mx.array(kept)]
            return fresh

        self.keys, self.values = moved(self.keys, like.keys), moved(self.values, like.values)

    def put(self, slot: int, row: KVRow) -> None:
        """Write a row into a slot, which has room for it."""
        keys, values = self._held()
        num_tokens = row.keys.shape[2]
        keys[slot : slot + 1, :, :num_tokens] = row.keys
        values[slot : slot + 1, :, :num_tokens] = row.values

    def make_mask(
        self,
        num_columns: int,  # noqa: ARG002
        return_array: bool = False,  # noqa: ARG002
        window_size: int | None = None,  # noqa: ARG002
    ) -> mx.array | None:
        """Return which columns the next token of each row may attend to; ``None`` for all."""
        return self._slots.mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write each row's next token, ``(num_slots, num_kv_heads, 1, head_dim)``; return all columns."""
        held_keys, held_values = self._held()
        at = mx.arange(len(self._slots.lengths))
        held_keys[at, :, self._slots.ends] = keys[:, :, 0]
        held_values[at, :, self._slots.ends] = values[:, :, 0]
        end = self._slots.num_columns
        return held_keys[:, :, :end], held_values[:, :, :end]

    def _held(self) -> tuple[mx.array, mx.array]:
        if self.keys is None or self.values is None:
            raise RuntimeError("no row has been put into this KV cache yet")
        return self.keys, self.values


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

    def copy(self) -> "RecurrentRow":
        """Return it as it is: it was copied when it was handed out."""
        return self

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """What is to be evaluated."""
        return self.window, self.recurrent


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
        """What a chunk must have computed before the next."""
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

    def resize(self, kept: list[int], num_slots: int, like: RecurrentRow | None = None) -> None:
        """Move the slots ``kept`` to the front of ``num_slots``; ``like`` is a row as those put there."""
        like = like or RecurrentRow(*self._held(), 0)

        def moved(held: mx.array | None, like: mx.array) -> mx.array:
            fresh = mx.zeros((num_slots, *like.shape[1:]), like.dtype)
            if held is not None and kept:
                fresh[: len(kept)] = held[mx.array(kept)]
            return fresh

        self.window, self.recurrent = moved(self.window, like.window), moved(self.recurrent, like.recurrent)

    def put(self, slot: int, row: RecurrentRow) -> None:
        """Write a row's state into a slot."""
        window, recurrent = self._held()
        window[slot : slot + 1], recurrent[slot : slot + 1] = row.window, row.recurrent

    def _next_paddings(self, num_columns: int) -> list[int]:
        """Return how many of the next columns are padding, row by row."""
        return [min(max(start - self._used, 0), num_columns) for start in self._starts]

    def _held(self) -> tuple[mx.array, mx.array]:
        if self.window is None or self.recurrent is None:
            raise RuntimeError("nothing is in this recurrent state yet")
        return self.window, self.recurrent


LayerRow = KVRow | RecurrentRow
RowsState = RowsKVCache | RowsRecurrentState
