"""Features from the store, for pass two: every byte checked as it is read, a few frames kept.

Several prompts over one frame come one after the other, so a handful of entries is enough to read
each frame once.
"""

from collections import OrderedDict

from cache.entry import Features
from cache.errors import NotEncodedError
from cache.key import EntryKey
from cache.manifest import FrameEntry
from cache.store import Store

_KEPT = 2


class StoredFeatures:
    """Reads entries of one recording."""

    def __init__(self, store: Store, recording_id: str) -> None:
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
