"""What the verifier needs of live encoding: a protocol that pass one answers to, wired in the front door."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cache.entry import Features
from cache.manifest import FrameEntry, Manifest
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder

if TYPE_CHECKING:
    from PIL import Image


class LiveSide(Protocol):
    """What pass one lends: pictures of frames, and what its encoder makes of them now."""

    def misplaced(self, frame: FrameEntry) -> str | None:
        """Say how a frame's place in the recording is not the one that the manifest names, or ``None``."""

    def image(self, frame: FrameEntry) -> "Image.Image":
        """Return the RGB picture of a frame.

        Raises:
            CannotCheckError: it is gone or cannot be read.
            StalePictureError: it is no longer the picture that was encoded.
        """

    def encode(self, image: "Image.Image") -> Features:
        """Encode a picture now, with pass one's own encoder."""


LiveSideOf = Callable[[CheckpointFolder, CheckpointConfig, Manifest], LiveSide]
