"""Features of the pictures that requests show: those just encoded, and those of the store."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from cache.base.errors import NotEncodedError, SeeonceError
from cache.entry import Features, Provenance
from cache.key import EntryKey
from cache.leases import held_lease
from cache.manifest import FrameEntry
from cache.stats import StoreLimit
from cache.store import Store
from infer.features import StoredFeatures
from seeonce.server.jobs import NewPicture
from seeonce.server.metrics import Metrics

_log = logging.getLogger("seeonce.server")


class ServedFeatures(StoredFeatures):
    """Holds what was just encoded until it is stored and read; the rest is read from the store."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        super().__init__(store, "RECORDING")
        self._local, self._metrics = store, metrics
        self._limit = StoreLimit.of(store)
        self._held: dict[EntryKey, Features] = {}
        self._holds: Counter[EntryKey] = Counter()
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="seeonce-writer")

    def in_use(self, model: str) -> AbstractContextManager[None]:
        """Hold a lease while a model answers: nothing is collected, and encode --watch waits."""
        return held_lease(self._local, f"serve {model}")

    @property
    def held_bytes(self) -> int:
        """Bytes of features that are held."""
        with self._lock:
            return sum(features.nbytes for features in self._held.values())

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a picture.

        Raises:
            NotEncodedError: its entry is missing or damaged.
        """
        held = self._held.get(frame.key)
        if held is not None:
            return held
        try:
            return super().features(frame)
        except NotEncodedError as error:
            raise NotEncodedError(
                "The stored features of a picture are missing or damaged: send the picture again, or run "
                "seeonce encode on its recording."
            ) from error

    def is_stored(self, key: EntryKey) -> bool:
        """Tell whether the store has an entry."""
        return self._store.has(key)

    def hold(self, key: EntryKey) -> bool:
        """Hold what is held already for one more; tell whether it is."""
        with self._lock:
            if key not in self._held:
                return False
            self._holds[key] += 1
            return True

    def put(self, picture: NewPicture, features: Features, provenance: Provenance) -> None:
        """Hold features for one request, and store them if that is wanted."""
        key = picture.frame.key
        with self._lock:
            self._held[key] = features
            self._holds[key] += 1
        if picture.keep and self._local.writable and self.hold(key):
            self._writer.submit(self._write, picture, features, provenance)

    def release(self, keys: Iterable[EntryKey]) -> None:
        """End holds; what nobody holds is dropped."""
        with self._lock:
            for key in keys:
                self._holds[key] -= 1
                if self._holds[key] <= 0:
                    del self._holds[key]
                    self._held.pop(key, None)

    def close(self) -> None:
        """Wait until everything is stored."""
        self._writer.shutdown()

    def _write(self, picture: NewPicture, features: Features, provenance: Provenance) -> None:
        try:
            self._limit.take(features.nbytes)
            self._local.write(picture.frame.pixels, picture.spec, features, provenance)
            self._metrics.bytes_stored.inc(features.nbytes)
        except (SeeonceError, ValueError) as error:  # the request is answered all the same
            _log.warning("a picture was not stored: %s", error)
        finally:
            self.release([picture.frame.key])
