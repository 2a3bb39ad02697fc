"""What pass two is asked: a prompt over frames, with its sampling. Free of the command line and of MLX."""

from dataclasses import dataclass
from typing import Protocol

from cache.entry import Features
from cache.key import EntryKey
from cache.manifest import FrameEntry
from infer.sampling import Sampling
from infer.tokenizer import PromptTokens


class FeatureSource(Protocol):
    """Where features come from: the store, or the live encoder when outputs are verified."""

    def features(self, frame: FrameEntry) -> Features:
        """Return the features of a frame.

        Raises:
            SeeonceError: there are none; the request gets this error, the others go on.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt over one or several frames. ``id`` is the caller's own."""

    id: int
    prompt: PromptTokens
    frames: tuple[FrameEntry, ...]
    sampling: Sampling

    @property
    def keys(self) -> tuple[EntryKey, ...]:
        """Keys of the frames, in the order in which the prompt shows them."""
        return tuple(frame.key for frame in self.frames)
