"""Features from the store, for pass two: every byte checked as it is read, a few frames kept.

Several prompts over one frame come one after the other, so a handful of entries is enough to read
each frame once.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from cache.base.errors import NotEncodedError
from cache.entries import Entries
from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry

_KEPT = 2


class FeatureSource(Protocol):
    """Where features come from.

    The store, what a server has just encoded, or the live encoder when outputs are verified.
    """

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a frame.

        Raises:
            SeeonceError: there are none; the request gets this error, the others go on.
        """


class StoredFeatures:
    """Reads entries of one recording."""

    def __init__(self, store: Entries, recording_id: str) -> None:
        """Read from ``store``; the id is for messages."""
        self._store, self._recording_id = store, recording_id
        self._recent: OrderedDict[EntryKey, Features] = OrderedDict()

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a frame.

        Raises:
            NotEncodedError: the entry is missing or damaged.
        """
        features = self._recent.get(frame.key) or self._store.read(frame.key)
        if features is None:
            raise NotEncodedError(
                f"The entry of frame {frame.index} is missing or damaged: run "
                f"seeonce encode {self._recording_id} to encode it again."
            )
        self._recent[frame.key] = features
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return features


class ReadAhead:
    """A source of features that begins to read before it is asked; use as a context manager.

    An error while reading is raised when its frame is asked for, so it travels to the frame's request.
    """

    def __init__(self, source: FeatureSource, num_frames: int) -> None:
        """Read from ``source``, at most ``num_frames`` ahead."""
        self._source, self._num_frames = source, num_frames
        self._reading: dict[EntryKey, Future[Features]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seeonce-read-ahead")

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)  # waits for one read at most
        self._reading.clear()

    def expect(self, frames: Iterable[FrameEntry]) -> None:
        """Learn which frames come next, in order; what else was read is dropped."""
        wanted: dict[EntryKey, FrameEntry] = {}
        for frame in frames:
            if len(wanted) == self._num_frames:
                break
            wanted.setdefault(frame.key, frame)
        for key in self._reading.keys() - wanted.keys():
            self._reading.pop(key).cancel()
        for frame in wanted.values():
            self._begin(frame)

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a frame, once they are read.

        Raises:
            SeeonceError: they cannot be.
        """
        return self._begin(frame).result()

    def _begin(self, frame: FrameEntry) -> Future[Features]:
        if frame.key not in self._reading:
            self._reading[frame.key] = self._thread.submit(self._source.features, frame)
        return self._reading[frame.key]
