"""What a layer keeps of a row: attention its keys and values, a gated delta net a state of fixed size.

Of several rows, keys and values lie side by side in prefill (``prefill.RowsKVCache``) and in slots while they
decode (``slots.SlotKVCache``), states in ``RowsRecurrentState`` in both. Counts and paddings are plain
integers, so that no step waits for the device to learn them.
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

    def between(self, begin: int, end: int) -> "KVRow":
        """Return those of some tokens: they do not depend on what follows."""
        return KVRow(self.keys[:, :, begin:end], self.values[:, :, begin:end])

    def after(self, other: "KVRow") -> "KVRow":
        """Return those of ``other`` and these, as one."""
        return KVRow(
            mx.concatenate([other.keys, self.keys], axis=2),
            mx.concatenate([other.values, self.values], axis=2),
        )

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


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentRow:
    """The state of one gated delta net after the first ``num_tokens`` of one row.

    ``window`` ``(1, kernel - 1, channels)`` are the last inputs of its convolution; ``recurrent`` is float32
    ``(1, num_value_heads, value_dim, key_dim)``.
    """

    window: mx.array
    recurrent: mx.array
    num_tokens: int

    def between(self, begin: int, end: int) -> "RecurrentRow":  # noqa: ARG002
        """Return the state at the ``end``, which must be its own: it cannot be cut back."""
        if end != self.num_tokens:
            raise RuntimeError(f"a recurrent state after {self.num_tokens} tokens is not one after {end}")
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

    Columns are those of the ``RowsKVCache`` beside it: a row's new tokens begin at column ``starts[i]``, and
    its first, were all of them there, would lie at ``paddings[i]``.
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
        return RecurrentRow(window[at], recurrent[at], seen).between(0, num_tokens)

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

    def release(self) -> None:
        """Hold nothing any more."""
        self.window = self.recurrent = None

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
