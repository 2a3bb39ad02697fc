"""Prefixes that outlive a run: read ahead from disk for waiting sequences, written as they are prefilled.

What the decoder keeps of a prompt up to the end of its last image does not depend on what follows, so a later
prompt over the same frames starts from it.
"""

import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Listed
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from cache.base.errors import SeeonceError, disk_error
from cache.base.text import megabytes
from cache.prefixes import OPTION, PrefixInfo, PrefixKey, PrefixStore
from infer.kv_cache import KVRow, LayerRow, RecurrentRow, RowsRecurrentState
from infer.model import LanguageModel
from infer.prefill import RowsKVCache
from infer.prefixes import PrefixName, SharedPrefix, prefix_name
from infer.sequence import Sequence

_MAX_PENDING_BYTES = 1 << 30  # of what waits to be written; one is always taken
_NUM_TRIED = 2  # prefixes that are read before reading is judged
_WORTH_S = 0.01  # below this nobody waits for either


_Arrays = tuple[mx.array, ...]
"""A prefix as it was read: arrays of bytes, one for each array that a layer keeps."""


class PrefixCache:
    """The prefixes of one model on disk; in ``with`` as long as an engine answers, by its thread.

    Whatever the disk does, the engine goes on: ``take_notes`` says, once, what does not work.
    """

    def __init__(self, store: PrefixStore, model: LanguageModel, computed_by: tuple[str, ...]) -> None:
        """Keep in ``store`` what ``model`` computes; ``computed_by`` names weights, type, device."""
        self._store, self._computed_by = store, computed_by
        self._layout = Layout(model)
        self._reads = self._writes = True
        self._notes: list[str] = []
        self._reading: dict[PrefixKey, Future[_Arrays | None]] = {}
        self._wrong: set[PrefixKey] = set()  # read in vain: a folder that cannot be written to keeps damage
        self._buffer = np.empty(0, np.uint8)
        self._pending_bytes, self._lock = 0, threading.Lock()
        self._read_s = self._prefill_s = float("inf")  # of a token, the best that was seen
        self._num_read = self._worth_tokens = 0

    def __enter__(self) -> Self:
        self._reader = ThreadPoolExecutor(1, "seeonce-prefix-reader")
        self._writer = ThreadPoolExecutor(1, "seeonce-prefix-writer")
        self._wrong.clear()
        if self._writes or self._reads:
            try:
                self._store.prepare()
            except OSError as error:
                self._give_up_writing(error)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)
        self._reading.clear()
        self._buffer = np.empty(0, np.uint8)

    def take_notes(self) -> list[str]:
        """Return what is to be said to the user and was not said yet."""
        notes, self._notes = self._notes, []
        return notes

    def name(self, sequence: Sequence) -> PrefixName | None:
        """Name what is or may be kept of a sequence's prompt."""
        return prefix_name(sequence.keys, sequence.prompt, self._computed_by)

    def has(self, sequence: Sequence) -> bool:
        """Say whether a sequence can start from a prefix on disk, as far as one look tells."""
        name = sequence.prefix_name
        if not self._reads or name is None or name.key in self._wrong:
            return False
        return self._store.has(name.key)

    def expect(self, sequences: Iterable[Sequence]) -> None:
        """Have read what these start from, in order; what else was read is dropped."""
        wanted = {
            s.prefix_name.key: s.prefix_name for s in sequences if s.prefix_name is not None and self.has(s)
        }
        for key in self._reading.keys() - wanted.keys():
            self._reading.pop(key).cancel()
        for key, name in wanted.items():
            if key not in self._reading:
                self._reading[key] = self._reader.submit(self._read, name)

    def is_coming(self, sequence: Sequence) -> bool:
        """Say whether what a sequence starts from is being read."""
        return sequence.prefix_name is not None and sequence.prefix_name.key in self._reading

    @property
    def any_read(self) -> bool:
        """Whether anything has been read that was not taken yet."""
        return any(future.done() for future in self._reading.values())

    def take(self, sequence: Sequence, *, wait: bool = False) -> SharedPrefix | None:
        """Return what was read for a sequence; None when it is not there yet, or is not good.

        Then it is no longer coming, unless it is still being read.
        """
        name = sequence.prefix_name
        if name is None or name.key not in self._reading:
            return None
        future = self._reading[name.key]
        if not (wait or future.done()):
            return None
        del self._reading[name.key]
        found = future.result()
        self._judge()
        if found is None:
            self._wrong.add(name.key)
            return None
        rows = self._layout.rows(found, name.num_tokens)
        return SharedPrefix(sequence.prompt, rows, name.num_tokens, self._layout.num_bytes(name.num_tokens))

    def num_to_keep(self, sequence: Sequence) -> int:
        """Return how many tokens of a sequence that is to be prefilled should be kept; 0 for none."""
        name = sequence.prefix_name
        if name is None or not self._writes or name.num_tokens <= sequence.num_shared:
            return 0
        num_bytes = self._layout.num_bytes(name.num_tokens)
        if num_bytes > self._store.max_bytes:
            self._note(f"A prefix takes {megabytes(num_bytes)}, more than {OPTION} allows: none is kept.")
            self._writes = False
            return 0
        with self._lock:
            is_room = not self._pending_bytes or self._pending_bytes + num_bytes <= _MAX_PENDING_BYTES
        return name.num_tokens if is_room and not self._store.has(name.key) else 0

    def keep(self, sequence: Sequence, rows: Listed[LayerRow], prefill_s: float) -> None:
        """Write what was prefilled of a sequence, from another thread; ``rows`` must be evaluated."""
        if sequence.prefix_name is None:
            return
        arrays = [_as_bytes(array) for row in rows for array in row.arrays]
        mx.eval(arrays)
        info = PrefixInfo(sequence.prefix_name.key, sequence.keys, sequence.prefix_name.num_tokens, prefill_s)
        with self._lock:
            self._pending_bytes += sum(array.nbytes for array in arrays)
        self._writer.submit(self._write, info, arrays)

    def _write(self, info: PrefixInfo, arrays: list[mx.array]) -> None:
        parts = [np.asarray(array) for array in arrays]
        try:
            if self._writes:
                self._store.write(info, parts)
        except OSError as error:
            self._give_up_writing(error)
        finally:
            with self._lock:
                self._pending_bytes -= sum(part.nbytes for part in parts)

    def _read(self, name: PrefixName) -> _Arrays | None:
        started, num_bytes = time.perf_counter(), self._layout.num_bytes(name.num_tokens)
        if self._buffer.nbytes < num_bytes:
            self._buffer = np.empty(num_bytes, np.uint8)
        try:
            found = self._store.read(name.key, num_bytes, self._buffer)
        except SeeonceError as error:
            self._note(f"The prefix cache is not read any more: {error}")
            self._reads = False
            return None
        if found is None:
            return None
        info, payload = found
        arrays = tuple(mx.array(part) for part in self._layout.parts(payload, name.num_tokens))
        self._num_read += 1
        self._read_s = min(self._read_s, (time.perf_counter() - started) / name.num_tokens)
        self._prefill_s = min(self._prefill_s, info.prefill_s / name.num_tokens)
        self._worth_tokens = name.num_tokens
        return arrays

    def _judge(self) -> None:
        """Give up where reading takes longer than prefill did, by more than anybody would notice."""
        if not self._reads or self._num_read < _NUM_TRIED:
            return
        read_s, prefill_s = self._read_s * self._worth_tokens, self._prefill_s * self._worth_tokens
        if read_s > prefill_s + _WORTH_S:
            self._reads = self._writes = False
            self._note(
                f"Reading a prefix from disk takes {read_s:.2f} s here, prefilling it {prefill_s:.2f} s: "
                "the prefix cache is not used."
            )

    def _give_up_writing(self, error: OSError) -> None:
        if self._writes:
            self._writes = False
            self._note(str(disk_error(self._store.path, "No more prefixes are kept on disk", error)))

    def _note(self, line: str) -> None:
        self._notes.append(line)


class Layout:
    """How the arrays of all layers lie in a payload: one after the other, each contiguous."""

    def __init__(self, model: LanguageModel) -> None:
        """Ask the decoder for the shapes of one token's; nothing is computed for that."""
        decoder = model.model
        caches = [
            RowsRecurrentState([0]) if is_recurrent else RowsKVCache([0])
            for is_recurrent in decoder.recurrent
        ]
        with model.stream():
            embedded = decoder.decoder.embed_tokens(mx.array([[0]], dtype=mx.int32))
            decoder.hidden(embedded, caches, mx.zeros((3, 1, 1), mx.int32))
            of_a_token = [cache.row(0, 1) for cache in caches]
        self._shapes = [[(array.shape, array.dtype) for array in row.arrays] for row in of_a_token]
        self._is_recurrent = decoder.recurrent

    def num_bytes(self, num_tokens: int) -> int:
        """Return what the arrays of so many tokens take."""
        return sum(prod(shape) * dtype.size for shape, dtype in self._arrays(num_tokens))

    def parts(self, payload: NDArray[np.uint8], num_tokens: int) -> list[NDArray[np.uint8]]:
        """Cut a payload into its arrays."""
        parts, at = [], 0
        for shape, dtype in self._arrays(num_tokens):
            num_bytes = prod(shape) * dtype.size
            parts.append(payload[at : at + num_bytes])
            at += num_bytes
        return parts

    def rows(self, arrays: Iterable[mx.array], num_tokens: int) -> tuple[LayerRow, ...]:
        """Return what the layers keep, of the bytes of its arrays."""
        shaped = [
            array.view(dtype).reshape(shape)
            for array, (shape, dtype) in zip(arrays, self._arrays(num_tokens), strict=True)
        ]
        pairs = zip(shaped[0::2], shaped[1::2], self._is_recurrent, strict=True)
        return tuple(
            RecurrentRow(first, second, num_tokens) if is_recurrent else KVRow(first, second)
            for first, second, is_recurrent in pairs
        )

    def _arrays(self, num_tokens: int) -> list[tuple[tuple[int, ...], mx.Dtype]]:
        return [
            (shape if is_recurrent else (*shape[:2], num_tokens, *shape[3:]), dtype)
            for shapes, is_recurrent in zip(self._shapes, self._is_recurrent, strict=True)
            for shape, dtype in shapes
        ]


def _as_bytes(array: mx.array) -> mx.array:
    return mx.contiguous(array).reshape(-1).view(mx.uint8)
