"""Slots of rows that decode: where each row's keys and values lie, and which prefix it reads."""

import mlx.core as mx

from infer.attention import Readers, attend
from infer.kv_cache import KVRow, rounded_up
from infer.prefixes import SharedPrefix


class Slots:
    """How many tokens of its row each slot holds, alike in all layers, and which prefix is read before them.

    A free slot takes part in every step, as a row of length 0, until another row is put there.
    """

    def __init__(self) -> None:
        """Begin with no slots."""
        self.lengths: list[int] = []
        self.prefixes: list[SharedPrefix | None] = []
        self.readers = Readers([])
        self.ends = self.row_lengths = mx.array([], dtype=mx.int32)
        self.mask: mx.array | None = None
        self._grouped: list[SharedPrefix | None] = []
        self._num_read = mx.array([], dtype=mx.int32)  # tokens of its prefix that each slot's row reads

    @property
    def num_columns(self) -> int:
        """Columns in use once the next token of each row is written."""
        return max(self.lengths, default=0) + 1

    def release(self) -> None:
        """Hold no slots any more, nor what was read from them."""
        self.lengths, self.prefixes, self._grouped = [], [], []
        self.readers, self.mask = Readers([]), None

    def begin_step(self) -> None:
        """Make what all layers need for the next token: where it is written, and what it may attend to."""
        if self._grouped != self.prefixes:
            self.readers, self._grouped = Readers(self.prefixes), list(self.prefixes)
            num_read = [0 if prefix is None else prefix.num_in_place for prefix in self.prefixes]
            self._num_read = mx.array(num_read, dtype=mx.int32)
        self.ends = mx.array(self.lengths, dtype=mx.int32)
        self.row_lengths = self.ends + self._num_read
        alike = min(self.lengths) + 1 == self.num_columns
        self.mask = None if alike else (mx.arange(self.num_columns) <= self.ends[:, None])[:, None, None]


class SlotKVCache:
    """Keys and values of rows that decode: token ``j`` after a row's prefix lies in column ``j`` of its slot.

    A row is written into its slot and nothing else is touched.
    """

    def __init__(self, slots: Slots, layer: int) -> None:
        """Begin with nothing; ``slots`` is shared by all layers."""
        self._slots, self._layer = slots, layer
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> int:
        """Columns filled before this step, an ``int``: mlx-vlm reads it, and nothing waits for the device."""
        return self._slots.num_columns - 1

    @property
    def row_lengths(self) -> mx.array:
        """Number of tokens of each row, its prefix included, int32 ``(num_slots,)``."""
        return self._slots.row_lengths

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

    def release(self) -> None:
        """Hold nothing any more."""
        self.keys = self.values = None

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

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
    ) -> mx.array:
        """Attend to what ``update_and_fetch`` returned and to the prefixes before it."""
        return attend(queries, KVRow(keys, values), self._slots.readers, self._layer, scale, mask)

    def _held(self) -> tuple[mx.array, mx.array]:
        if self.keys is None or self.values is None:
            raise RuntimeError("no row has been put into this KV cache yet")
        return self.keys, self.values
