"""What pass two needs of live encoding: a protocol that pass one answers to, wired in the front door."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry, Manifest
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder

if TYPE_CHECKING:
    from PIL import Image


_KEPT = 64  # entries; a larger sample is encoded again for its outputs, rather than held in memory


class LiveSide(Protocol):
    """What pass one lends: pictures of frames, and what its encoder makes of them now."""

    def image(self, frame: FrameEntry) -> "Image.Image":
        """Return the RGB picture of a frame.

        Raises:
            CannotCheckError: it is gone or cannot be read.
            StalePictureError: it is no longer the picture that was encoded.
        """

    def features(self, frame: FrameEntry) -> Features:
        """Encode the picture of a frame now. Raises as ``image``."""


LiveSideOf = Callable[[CheckpointFolder, CheckpointConfig, Manifest], LiveSide]


class LiveFeatures:
    """Live features of a sample, each picture encoded once for all levels."""

    def __init__(self, live_side: LiveSide) -> None:
        """Encode with ``live_side``."""
        self.image = live_side.image
        self._live_side = live_side
        self._known: dict[EntryKey, Features] = {}
        self._looked_at: set[int] = set()

    def features(self, frame: FrameEntry) -> Features:
        """Return what the encoder makes of a frame now. Raises as ``LiveSide.image``."""
        if frame.key not in self._known:
            self._known[frame.key] = self._live_side.features(frame)
            if len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        elif frame.index not in self._looked_at:
            self.image(frame)  # another frame of the same entry must show the same picture
        self._looked_at.add(frame.index)
        return self._known[frame.key]
