"""What encoding will cost: the frames that the store lacks, their tokens and bytes, and whether these fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cache.base.errors import InputError, StoreError
from cache.base.text import counted, megabytes
from cache.entry import bytes_per_token
from cache.key import EncoderSpec, PixelDigest, entry_key, pixel_digest
from cache.objects import is_address
from cache.pixel_index import KnownPixels, PixelIndex
from cache.stats import StoreLimit
from cache.store import Store
from checkpoint.identity import lowest_vision_bits
from precompute.patches import num_tokens
from sources.pixels import SCREEN_PIXELS, ImageHeader, pixels_array, read_header
from sources.recording import Frame

_LEAST_VISION_BITS = 8


def not_encoded(frames: Sequence[Frame], spec: EncoderSpec, store: Store, index: PixelIndex) -> list[Frame]:
    """Return the frames that are not known, without decoding them, to have an entry."""
    known = index.get_many([frame.stamp for frame in frames])
    return [
        frame
        for frame in frames
        if (pixels := known.get(frame.stamp)) is None
        or not store.has(entry_key(pixels.pixels, spec.encoder_id))
    ]


def report_cost(
    others: Sequence[Frame],
    name: str,
    spec: EncoderSpec,
    store: Store,
    index: PixelIndex,
    limit: StoreLimit,
    say: Callable[[str], None],
) -> None:
    """Say what the frames will cost, and refuse what the disk or the limit of the store cannot hold.

    Frames that were moved or repeat themselves have entries already: before a refusal they are looked at.
    """
    bits = lowest_vision_bits(spec)
    if bits is not None and bits < _LEAST_VISION_BITS:
        say(
            f"warning: the vision tower is quantised to {bits} bits, which destroys small text; prefer a "
            "checkpoint with an unquantised or 8-bit vision tower"
        )
    sizes = list(_sizes(others))
    tokens, num_bytes, num_frames = _num_tokens(sizes, spec), _num_bytes(sizes, spec), len(others)
    say(
        f"{name}: {counted(num_frames, 'frame')} to look at, about {tokens // num_frames:,} tokens and "
        f"{megabytes(num_bytes // num_frames)} each; writes at most {megabytes(num_bytes)}."
    )
    if num_huge := sum(size.width * size.height > SCREEN_PIXELS for size in sizes):
        say(f"warning: larger than any screen, and shrunk for the model: {num_huge} of these pictures")
    if num_animated := sum(size.has_more for size in sizes):
        say(f"warning: animated or of several pages, the first is taken: {num_animated} of these files")
    if store.free_bytes() < num_bytes or not limit.fits(num_bytes, num_frames):
        say("The store may not hold that: looking which of these pictures are new.")
        others = list(_new_pictures(others, spec, store, index))
        num_bytes, num_frames = _num_bytes(_sizes(others), spec), len(others)
    if (free := store.free_bytes()) < num_bytes:
        raise StoreError(
            f"Encoding needs up to {megabytes(num_bytes)}, {megabytes(free)} are free in {store.path}: "
            "free space, lower --max-pixels or --limit, or set SEEONCE_HOME to another disk."
        )
    limit.require(num_bytes, num_frames)


def _num_tokens(sizes: Iterable[ImageHeader], spec: EncoderSpec) -> int:
    return sum(num_tokens(size.width, size.height, spec.preprocessing) for size in sizes)


def _num_bytes(sizes: Iterable[ImageHeader], spec: EncoderSpec) -> int:
    return _num_tokens(sizes, spec) * bytes_per_token(spec)


def _new_pictures(
    frames: Sequence[Frame], spec: EncoderSpec, store: Store, index: PixelIndex
) -> Iterator[Frame]:
    """Yield frames whose picture has no entry, each picture once, and those that cannot be read. Decodes."""
    seen: set[PixelDigest] = set()
    for frame in frames:
        stamp = frame.stamp.current()
        try:
            image = frame.read()
        except InputError:
            yield frame
            continue
        known = KnownPixels(pixel_digest(pixels_array(image)), image.width, image.height)
        index.put(stamp, known)
        if known.pixels not in seen and not store.has(entry_key(known.pixels, spec.encoder_id)):
            yield frame
        seen.add(known.pixels)


def _sizes(frames: Iterable[Frame]) -> Iterator[ImageHeader]:
    """Yield the size of each readable frame; of a video, and of a bucket's folder, that of the first."""
    of_place: dict[str, ImageHeader] = {}
    for frame in frames:
        with suppress(InputError):
            if not frame.stamp.position:
                yield read_header(Path(frame.stamp.path))
            else:
                path = frame.stamp.path
                place = path.rpartition("/")[0] if is_address(path) else path
                if place not in of_place:
                    of_place[place] = ImageHeader(*frame.read().size, has_more=False)
                yield of_place[place]
