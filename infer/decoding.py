"""Decoding: one token of every row a step. A row that joins gets a slot, one that ends frees it."""

from collections.abc import Sequence as Listed

import mlx.core as mx

from infer.kv_cache import KVRow, LayerRow, RecurrentRow, RowsRecurrentState
from infer.model import DenseDeepstackModel
from infer.prefill import Prefill
from infer.prefixes import SharedPrefix
from infer.sequence import Sequence
from infer.slots import SlotKVCache, Slots

_IDLE_STEPS = 4  # with half of the slots free, before the rows are moved together


class DecodeBatch:
    """Rows in slots. What is handed out was begun a step before: the device never waits for Python."""

    def __init__(self, model: DenseDeepstackModel) -> None:
        """Begin without rows."""
        self._model = model
        self._rows: list[Sequence | None] = []  # by slot
        self._rope_deltas: list[int] = []
        self._begun: list[tuple[int, Sequence]] = []  # slots and rows that have a token in ``_tokens``
        self._tokens = mx.array([], dtype=mx.uint32)  # the next token of each slot, perhaps not computed yet
        self.slots = Slots()
        self._num_idle_steps = 0
        self._cache: list[SlotKVCache | RowsRecurrentState] = [
            RowsRecurrentState([]) if is_recurrent else SlotKVCache(self.slots, layer)
            for layer, is_recurrent in enumerate(model.recurrent)
        ]

    def __len__(self) -> int:
        return len(self._begun)

    @property
    def num_slots(self) -> int:
        """Slots that are held, in use or not; none once all rows have ended."""
        return len(self._rows)

    @property
    def longest_row(self) -> int:
        """Tokens of its own that the longest row has."""
        return max(self.slots.lengths, default=0)

    @property
    def prefixes(self) -> frozenset[SharedPrefix]:
        """The prefixes that rows read."""
        return frozenset(prefix for prefix in self.slots.prefixes if prefix is not None)

    def join(self, prefill: Prefill) -> None:
        """Take in the rows of a prefill that is done."""
        rows, logits = prefill.sequences, prefill.logits
        scored = [
            row.processor(mx.array(row.prompt.ids), logits[index : index + 1]) if row.processor else None
            for index, row in enumerate(rows)
        ]
        first = mx.argmax(_replaced(logits, scored), axis=-1)
        lengths = [len(row.prompt.ids) - row.num_in_place for row in rows]
        layers = [prefill.own(index) for index in range(len(rows))]
        slots = self._reserve(len(rows), max(lengths), layers[0])
        for index, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            for held, layer in zip(self._cache, layers[index], strict=True):
                held.put(slot, layer)  # type: ignore[arg-type]  # a layer's rows are of its kind
            self._rows[slot], self._rope_deltas[slot] = row, prefill.rope_deltas[index]
            self.slots.lengths[slot], self.slots.prefixes[slot] = lengths[index], row.prefix
            self._begun.append((slot, row))
        self._tokens[mx.array(slots)] = first
        mx.async_eval(self._tokens, [held.state for held in self._cache])  # type: ignore[no-untyped-call]

    def step(self) -> list[tuple[Sequence, int]]:
        """Hand out the next token of every row, having begun with those after them."""
        tokens, begun = self._tokens, self._begun
        for slot, row in begun:
            if row.num_to_come == 1:  # its last, whichever it is
                self._free(slot)
        self._begun = [(slot, row) for slot, row in enumerate(self._rows) if row is not None]
        if self._begun:
            self._begin(tokens)
        else:
            self._release()
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        return [(row, values[slot]) for slot, row in begun]

    def remove(self, rows: Listed[Sequence]) -> None:
        """Free the slots of rows that have ended; nothing of others is touched."""
        for slot, row in enumerate(self._rows):
            if row in rows:
                self._free(slot)
        self._begun = [(slot, row) for slot, row in self._begun if row not in rows]
        if not self._begun:
            self._release()

    def _begin(self, tokens: mx.array) -> None:
        """Compute what follows ``tokens``; nobody waits for it here, unless a row has a processor."""
        tokens = self._compacted(tokens)
        logits = self._logits(tokens)
        if any(row.processor for _, row in self._begun):
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            values: list[int] = tokens.tolist()  # type: ignore[assignment]
            scored: list[mx.array | None] = [None] * self.num_slots
            for slot, row in self._begun:
                if row.processor:
                    scored[slot] = row.processor.process_last_token(values[slot], logits[slot : slot + 1])
            logits = _replaced(logits, scored)
        self._tokens = mx.argmax(logits, axis=-1)
        mx.async_eval(self._tokens, [held.state for held in self._cache])  # type: ignore[no-untyped-call]

    def forward(self, tokens: mx.array) -> mx.array:
        """Return the most likely token after the ``tokens`` of all slots, as if none had a processor."""
        return mx.argmax(self._logits(tokens), axis=-1)

    def _logits(self, tokens: mx.array) -> mx.array:
        if self.slots.num_columns > self._capacity:
            self._resize(list(range(self.num_slots)), self.num_slots, self.slots.num_columns)
        self.slots.begin_step()
        deltas = mx.array(self._rope_deltas, dtype=mx.int32)[:, None]
        output = self._model(tokens[:, None], cache=self._cache, rope_deltas=deltas)
        logits: mx.array = output.logits[:, -1]
        for slot, _ in self._begun:
            self.slots.lengths[slot] += 1
        return logits

    def _free(self, slot: int) -> None:
        self._rows[slot] = None
        self._rope_deltas[slot] = self.slots.lengths[slot] = 0
        self.slots.prefixes[slot] = None

    def _release(self) -> None:
        self._rows, self._rope_deltas = [], []
        self.slots.release()
        for held in self._cache:
            held.release()

    def _reserve(self, num_rows: int, num_tokens: int, like: Listed[LayerRow]) -> list[int]:
        """Return free slots for rows of up to ``num_tokens``; more are made where there are too few."""
        kept = list(range(self.num_slots))
        free = [slot for slot in kept if self._rows[slot] is None]
        num_slots = len(kept) + max(0, num_rows - len(free))
        num_columns = max(num_tokens, self.longest_row) + 1
        if num_slots > len(kept) or num_columns > self._capacity:
            free += range(len(kept), num_slots)
            self._resize(kept, num_slots, num_columns, like)
        return free[:num_rows]

    @property
    def _capacity(self) -> int:
        held = self._cache[self._model.attention_index].state
        return held[0].shape[2] if held else 0

    def _compacted(self, tokens: mx.array) -> mx.array:
        """Move rows together that have filled less than half of the slots for some steps."""
        self._num_idle_steps = self._num_idle_steps + 1 if 2 * len(self._begun) <= self.num_slots else 0
        if self._num_idle_steps < _IDLE_STEPS:
            return tokens
        kept = [slot for slot, _ in self._begun]
        self._resize(kept, len(kept), self.slots.num_columns)
        self._begun = [(slot, row) for slot, (_, row) in enumerate(self._begun)]
        return tokens[mx.array(kept)]

    def _resize(
        self, kept: list[int], num_slots: int, num_columns: int, like: Listed[LayerRow] | None = None
    ) -> None:
        """Move the slots ``kept`` to the front of ``num_slots``, in every layer."""
        for index, held in enumerate(self._cache):
            row = None if like is None else like[index]
            if isinstance(held, SlotKVCache):
                held.resize(kept, num_slots, num_columns, row if isinstance(row, KVRow) else None)
            else:
                held.resize(kept, num_slots, row if isinstance(row, RecurrentRow) else None)
        more = num_slots - len(kept)
        self._rows = [*(self._rows[slot] for slot in kept), *[None] * more]
        self._rope_deltas = [*(self._rope_deltas[slot] for slot in kept), *[0] * more]
        self.slots.lengths = [*(self.slots.lengths[slot] for slot in kept), *[0] * more]
        self.slots.prefixes = [*(self.slots.prefixes[slot] for slot in kept), *[None] * more]
        moved = [self._tokens[mx.array(kept)]] if kept else []
        self._tokens = mx.concatenate([*moved, mx.zeros(more, mx.uint32)])
        self._num_idle_steps = 0


def _replaced(logits: mx.array, scored: Listed[mx.array | None]) -> mx.array:
    """Return ``logits`` ``(batch, vocab)``, those rows replaced that processors have scored."""
    if all(row is None for row in scored):
        return logits
    return mx.concatenate(
        [logits[index : index + 1] if row is None else row for index, row in enumerate(scored)]
    )
