"""What encoding will cost, told before it starts: tokens, bytes, and how much the disk must hold.

Sizes come from image headers; of a video one picture is decoded. An upper bound: repeated frames are
counted each time.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from cache.entry import STORED_DTYPES
from cache.errors import InputError
from cache.key import EncoderSpec
from cache.sizes import megabytes
from precompute.vision import Preprocessor
from sources.recording import Frame


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of frames that are not known to be stored. ``num_tokens`` and ``num_bytes`` are sums."""

    num_frames: int
    num_tokens: int
    num_bytes: int

    def __str__(self) -> str:
        """Say it in one line, per frame and in all."""
        per_frame = max(1, self.num_frames)
        return (
            f"{self.num_frames} frames to look at, about {self.num_tokens // per_frame:,} tokens and "
            f"{megabytes(self.num_bytes // per_frame)} each; writes at most {megabytes(self.num_bytes)}."
        )


def estimate(frames: Sequence[Frame], spec: EncoderSpec, preprocessor: Preprocessor) -> Estimate:
    """Return what ``frames`` cost at most under ``spec``; those that cannot be read cost nothing."""
    num_tokens = sum(preprocessor.num_tokens(width, height) for width, height in _sizes(frames))
    bytes_per_token = spec.num_layers * spec.out_hidden_size * STORED_DTYPES[spec.compute_dtype].itemsize
    return Estimate(len(frames), num_tokens, num_tokens * bytes_per_token)


def _sizes(frames: Iterable[Frame]) -> Iterator[tuple[int, int]]:
    """Yield width and height of each readable frame; the frames of one video are of one size."""
    of_video: dict[str, tuple[int, int]] = {}
    for frame in frames:
        with suppress(InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            if not frame.stamp.position:
                with Image.open(frame.stamp.path) as image:
                    yield image.size
            else:
                if frame.stamp.path not in of_video:
                    of_video[frame.stamp.path] = frame.read().size
                yield of_video[frame.stamp.path]
