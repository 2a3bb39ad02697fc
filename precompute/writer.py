"""The thread of pass one that commits features, so that the encoder never waits for the disk.

At durability ``batch`` several entries share their fsyncs: each is built aside at once, which frees its
features, and all are made durable together, at the latest after ``_BATCH_S``. ``full`` acknowledges each
entry by itself, and ``none`` has nothing to share.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

from cache.base.files import Durability
from cache.entries import Batch, Entries
from cache.entry import Features, Provenance
from cache.key import EncoderSpec, PixelDigest

_WRITES_AHEAD = 4
# What a kill or a power cut can cost: so many entries, so many bytes, so many seconds of encoding.
_BATCH_ENTRIES = 16  # each holds three open files
_BATCH_BYTES = 256 << 20
_BATCH_S = 2.0

_Item = tuple[PixelDigest, Features, Provenance]
_Written = tuple[PixelDigest, int]


class EntryWriter:
    """To be used in ``with``, by one thread; at its end everything that was put is acknowledged.

    An error of the store is raised in the thread that puts, at the next ``put`` or at the end.
    """

    def __init__(self, store: Entries, spec: EncoderSpec) -> None:
        self._store, self._spec = store, spec
        self._queue: queue.Queue[_Item | None] = queue.Queue(_WRITES_AHEAD)
        self._acknowledged: queue.SimpleQueue[_Written] = queue.SimpleQueue()
        self._added: list[_Written] = []
        self._due_s = 0.0
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write_all, name="seeonce-writer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None or kind is KeyboardInterrupt:
            self._raise()

    def put(self, pixels: PixelDigest, features: Features, provenance: Provenance) -> None:
        """Hand over the features of a picture; waits while too many are under way.

        Raises:
            StoreError: an earlier one could not be written.
        """
        self._raise()
        self._queue.put((pixels, features, provenance))

    def acknowledged(self) -> Iterator[_Written]:
        """Yield the digest and size in bytes of each entry acknowledged since the last call."""
        with suppress(queue.Empty):
            while True:
                yield self._acknowledged.get_nowait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_all(self) -> None:
        try:
            with self._store.batch() as batch:
                self._write(batch)
        except Exception as error:  # whatever it is, the encoding thread must hear of it
            self._error = error
            while not self._ended:  # it may be waiting in put
                self._get()

    def _write(self, batch: Batch) -> None:
        item = self._next(batch)
        while item is not None:
            try:
                pixels, features, provenance = item
                batch.add(pixels, self._spec, features, provenance)
            except Exception:
                self._commit(batch)  # what was added before is whole: a full disk still holds it
                raise
            self._added.append((pixels, features.nbytes))
            if self._is_full(batch):
                self._commit(batch)
            item = self._next(batch)
        self._commit(batch)

    def _next(self, batch: Batch) -> _Item | None:
        """Return what was put next, None at the end; the batch is committed when it is due first."""
        if batch.num_entries:
            try:
                return self._get(timeout_s=max(0.0, self._due_s - time.monotonic()))
            except queue.Empty:
                self._commit(batch)
        item = self._get()
        self._due_s = time.monotonic() + _BATCH_S
        return item

    def _get(self, timeout_s: float | None = None) -> _Item | None:
        item = self._queue.get(timeout=timeout_s)
        self._ended = item is None
        return item

    def _is_full(self, batch: Batch) -> bool:
        alone = self._store.durability is not Durability.batch
        return alone or batch.num_entries >= _BATCH_ENTRIES or batch.num_bytes >= _BATCH_BYTES

    def _commit(self, batch: Batch) -> None:
        batch.commit()
        for written in self._added:
            self._acknowledged.put(written)
        self._added.clear()
