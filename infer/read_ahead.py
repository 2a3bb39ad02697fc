"""Reads the features of the next frames while others are decoded, a few frames at most.

Owns one thread, in which every read happens, and what is read and not yet used. Which frames come next it
is told; what a read is, and its errors, are the source's.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.request import FeatureSource


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
