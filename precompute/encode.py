"""Pass one: every frame of a recording that the store lacks goes through the encoder once.

    Frame -> (threads: decode, digest, preprocess) -> Prepared -> (encoder) -> Features
          -> (writer thread) -> entry in the store

Memory does not grow with the recording: a few decoded frames and a few features wait at any time.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from cache.base.errors import InputError
from cache.entry import EntryInfo
from cache.key import EncoderSpec, EntryKey, PixelDigest, entry_key, pixel_digest
from cache.layout import now
from cache.manifest import FrameEntry, Manifest, SkippedFrame
from cache.pixel_index import KnownPixels, PixelIndex
from cache.stats import LimitReachedError, StoreLimit
from cache.store import Store
from cache.thumbnails import Thumbnails
from precompute.writer import EntryWriter
from sources.near_duplicates import NearDuplicates
from sources.pixels import pixels_array
from sources.recording import Frame, Recording

if TYPE_CHECKING:
    from PIL import Image

    from precompute.encoder import Patches, VisionEncoder

_MAX_PENDING_FRAMES = 8
_DURABLE_BY_THEN = timedelta(hours=1)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prefetch(Generic[Item, Result]):
    """Items in order with the futures of what is made of them, at most ``max_pending`` of them under way."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        max_pending: int,
    ) -> None:
        """Nothing is submitted before the first item is asked for."""
        self._pool, self._work, self._items, self._max_pending = pool, work, iter(items), max_pending
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def __iter__(self) -> Iterator[tuple[Item, "Future[Result]"]]:
        """Yield each item; an error of its work is raised by its future."""
        self._submit(self._max_pending)
        while self._waiting:
            yield self._waiting.popleft()
            self._submit(1)

    def then(self, work: Callable[[Result], Result]) -> None:
        """Have more done to what is under way.

        It waits in a thread for what was submitted before it, which is therefore never kept from one.
        """

        def after(before: "Future[Result]") -> Result:
            return work(before.result())

        self._waiting = deque((item, self._pool.submit(after, before)) for item, before in self._waiting)

    def _submit(self, num_items: int) -> None:
        for item in islice(self._items, num_items):
            self._waiting.append((item, self._pool.submit(self._work, item)))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far pass one is. A frame is done, and its entry new, when the store acknowledged the entry.

    ``num_bytes`` counts what was written, in bytes of payload; ``num_near`` frames use a neighbour's entry.
    """

    num_frames: int
    num_done: int
    num_hits: int
    num_new: int
    num_skipped: int
    num_bytes: int
    num_near: int = 0


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What pass one did: the manifest that it leaves, and how it went.

    ``stopped`` says why it ended early, when the store became as large as it may be. ``left_out`` names what
    lies beside the frames and is none.
    """

    manifest: Manifest
    progress: Progress
    interrupted: bool
    stopped: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A frame whose pixels are known: a hit, or a miss with what is to be encoded.

    That is an image until there is an encoder to make patches for, which take eight times its memory.
    ``look`` is its perceptual hash, where near duplicates are looked for.
    """

    frame: Frame
    known: KnownPixels
    hit: EntryInfo | None
    picture: "Image.Image | Patches | None"
    look: int | None = None


def not_encoded(frames: Sequence[Frame], spec: EncoderSpec, store: Store, index: PixelIndex) -> list[Frame]:
    """Return the frames that are not known, without decoding them, to have an entry."""
    known = index.get_many([frame.stamp for frame in frames])
    return [
        frame
        for frame in frames
        if (pixels := known.get(frame.stamp)) is None
        or not store.has(entry_key(pixels.pixels, spec.encoder_id))
    ]


def new_pictures(
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
        index.put_many([(stamp, known)])
        if known.pixels not in seen and not store.has(entry_key(known.pixels, spec.encoder_id)):
            yield frame
        seen.add(known.pixels)


def encode_recording(
    recording: Recording,
    spec: EncoderSpec,
    store: Store,
    index: PixelIndex,
    load_encoder: "Callable[[], VisionEncoder]",
    on_progress: Callable[[Progress], None] = lambda _: None,
    thumbnails: Thumbnails | None = None,
    limit: StoreLimit | None = None,
    near: NearDuplicates | None = None,
) -> EncodeResult:
    """Encode what the store lacks of ``recording`` and return its manifest, not yet written.

    ``load_encoder`` is called when a frame misses, in this thread, and not at all when none does. A
    frame that cannot be read is skipped and named in the manifest. On Ctrl-C the frames done so far
    are returned with ``interrupted`` set, at the limit of the store with ``stopped``. Of each picture
    that is decoded, ``thumbnails`` gets a small copy. A frame that ``near`` finds to look like the last
    one that was kept uses that one's entry.

    Raises:
        StoreError: the disk is full or refuses; what was committed before stays.
        CheckpointError: the encoder does not load.
    """
    num_frames = len(recording.frames())
    run = _Run(spec, store, index, load_encoder, num_frames, on_progress, thumbnails, limit, near)
    interrupted, stopped = False, ""
    try:
        run.go(recording)
        run.complete = True
    except KeyboardInterrupt:
        interrupted = True
    except LimitReachedError as error:
        stopped = str(error)
    frames = run.acknowledged_frames()
    manifest = Manifest(
        recording=recording.info,
        encoder=spec,
        frames=tuple(sorted(frames, key=lambda frame: frame.index)),
        skipped=tuple(run.skipped),
        complete=run.complete,
        created_at=now(),
    )
    return EncodeResult(manifest, run.progress(), interrupted, stopped, recording.left_out)


class _Run:
    """One execution of pass one. Only ``go``'s thread touches it, but for the writer's own queue."""

    def __init__(
        self,
        spec: EncoderSpec,
        store: Store,
        index: PixelIndex,
        load_encoder: "Callable[[], VisionEncoder]",
        num_frames: int,
        on_progress: Callable[[Progress], None],
        thumbnails: Thumbnails | None,
        limit: StoreLimit | None,
        near: NearDuplicates | None,
    ) -> None:
        self._limit = limit
        self._near = near
        self._kept: tuple[FrameEntry, int] | None = None  # the last with an entry of its own, and its look
        self._num_near = 0
        self._spec, self._store, self._index = spec, store, index
        self._thumbnails = thumbnails
        self._load_encoder = load_encoder
        self._encoder: VisionEncoder | None = None
        self._num_frames, self._on_progress = num_frames, on_progress
        self._num_hits = self._num_new = self._num_bytes = 0
        self._encoded: dict[PixelDigest, tuple[tuple[int, int, int], int]] = {}
        self._frames: list[FrameEntry] = []
        # Pictures whose entries are not acknowledged yet, each with how many frames show it.
        self._waiting: Counter[PixelDigest] = Counter()
        self._num_waiting = 0
        self._young_hits: set[EntryKey] = set()
        self.skipped: list[SkippedFrame] = []
        self.complete = False

    def go(self, recording: Recording) -> None:
        frames = recording.frames()
        writer = EntryWriter(self._store, self._spec)
        try:
            with writer, ThreadPoolExecutor(recording.max_readers) as pool:
                self._prefetch = Prefetch(pool, self._prepare, frames, _MAX_PENDING_FRAMES)
                try:
                    for frame, prepared in self._prefetch:
                        self._take(frame, prepared, writer)
                        self._settle(writer)
                        self._on_progress(self.progress())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self._settle(writer)
        self._on_progress(self.progress())

    def progress(self) -> Progress:
        done = len(self._frames) + len(self.skipped) - self._num_waiting
        return Progress(
            self._num_frames,
            done,
            self._num_hits,
            self._num_new,
            len(self.skipped),
            self._num_bytes,
            self._num_near,
        )

    def acknowledged_frames(self) -> list[FrameEntry]:
        """Return the frames whose entries are as durable as the store was opened for.

        Raises:
            StoreError: the disk refuses.
        """
        self._store.make_durable(self._young_hits)
        return [frame for frame in self._frames if frame.pixels not in self._waiting]

    def _settle(self, writer: EntryWriter) -> None:
        """Take note of what the writer acknowledged meanwhile."""
        for pixels, num_bytes in writer.acknowledged():
            self._num_waiting -= self._waiting.pop(pixels)
            self._num_new += 1
            self._num_bytes += num_bytes

    def _prepare(self, frame: Frame) -> Prepared | None:
        """Do the work of a thread; None for a frame that needs none if its neighbour can be read."""
        if self._near is not None and frame.index in self._near.likely:
            return None
        return self._prepared(frame)

    def _prepared(self, frame: Frame) -> Prepared:
        """Work out a frame's key and, when it is no hit, what the encoder needs."""
        look = None if self._near is None else self._near.known(frame)
        known = self._index.get(frame.stamp)
        if known is not None and (self._near is None or look is not None):
            hit = self._entry(known)
            if hit is not None:
                return Prepared(frame, known, hit, None, look)
        stamp = frame.stamp.current()
        image = frame.read()
        known = KnownPixels(pixel_digest(pixels_array(image)), image.width, image.height)
        self._index.put_many([(stamp, known)])
        if self._thumbnails is not None and not self._thumbnails.has(known.pixels):
            self._thumbnails.write(known.pixels, image)
        if self._near is not None:
            look = self._near.of(frame, known.pixels, image)
        hit = self._entry(known)
        return self._preprocessed(Prepared(frame, known, hit, None if hit else image, look))

    def _preprocessed(self, ready: Prepared) -> Prepared:
        """Make patches of the image of a miss, if there is an encoder to make them for."""
        if self._encoder is None or ready.picture is None:
            return ready
        return replace(ready, picture=_patches(self._encoder, ready.picture))

    def _entry(self, known: KnownPixels) -> EntryInfo | None:
        return self._store.entry_info(entry_key(known.pixels, self._spec.encoder_id))

    def _take(self, frame: Frame, prepared: "Future[Prepared | None]", writer: EntryWriter) -> None:
        """Book a frame: skipped, near the last one, a hit, a repeat within this run, or encoded now."""
        try:
            booked = self._near_the_last(frame, prepared) or self._on_its_own(frame, prepared, writer)
            self._frames.append(booked)
            if booked.pixels in self._waiting:
                self._waiting[booked.pixels] += 1
                self._num_waiting += 1
        except InputError as error:
            self.skipped.append(SkippedFrame(frame.index, frame.timestamp_s, frame.source, str(error)))

    def _near_the_last(self, frame: Frame, prepared: "Future[Prepared | None]") -> FrameEntry | None:
        """Give a frame the entry of the last one that was kept, if it looks so."""
        if self._near is None or self._kept is None:
            return None
        ready = prepared.result()
        look = self._near.known(frame) if ready is None else ready.look
        kept, kept_look = self._kept
        if look is None or not self._near.near(look, kept_look):
            return None
        self._num_near += 1
        return replace(
            kept,
            index=frame.index,
            timestamp_s=frame.timestamp_s,
            source=frame.source,
            neighbour=kept.index,
        )

    def _on_its_own(
        self, frame: Frame, prepared: "Future[Prepared | None]", writer: EntryWriter
    ) -> FrameEntry:
        ready = prepared.result() or self._prepared(frame)
        booked = self._booked(ready, writer)
        self._kept = None if ready.look is None else (booked, ready.look)
        return booked

    def _booked(self, ready: Prepared, writer: EntryWriter) -> FrameEntry:
        frame, pixels = ready.frame, ready.known.pixels
        if ready.picture is not None and pixels not in self._encoded:
            self._encode(pixels, ready.picture, writer)
        else:
            self._num_hits += 1
        if ready.hit is not None:
            if _young(ready.hit):
                self._young_hits.add(ready.hit.key)
            self._encoded[pixels] = (ready.hit.grid_thw, ready.hit.num_tokens)
        grid_thw, num_tokens = self._encoded[pixels]
        return FrameEntry(
            index=frame.index,
            timestamp_s=frame.timestamp_s,
            source=frame.source,
            pixels=pixels,
            key=entry_key(pixels, self._spec.encoder_id),
            width=ready.known.width,
            height=ready.known.height,
            grid_thw=grid_thw,
            num_tokens=num_tokens,
        )

    def _encode(self, pixels: PixelDigest, picture: "Image.Image | Patches", writer: EntryWriter) -> None:
        """Encode a frame; the first ones were prepared before there was an encoder to prepare for."""
        if self._encoder is None:
            self._encoder = self._load_encoder()
            self._prefetch.then(lambda ready: ready and self._preprocessed(ready))
        encoder = self._encoder
        features = encoder.encode(_patches(encoder, picture))
        if self._limit is not None:
            self._limit.take(features.nbytes)
        self._waiting[pixels] = 0
        writer.put(pixels, features, encoder.provenance)
        self._encoded[pixels] = (features.grid_thw, features.num_tokens)


def _young(entry: EntryInfo) -> bool:
    """Say whether an entry was made so lately that its writer may not have made it durable yet."""
    try:
        created_at = datetime.fromisoformat(entry.created_at)
        return datetime.now(UTC) - created_at < _DURABLE_BY_THEN
    except (ValueError, TypeError):  # no time, or one without its zone: we cannot know
        return True


def _patches(encoder: "VisionEncoder", picture: "Image.Image | Patches") -> "Patches":
    from PIL import Image  # not for --help

    return encoder.preprocess(picture) if isinstance(picture, Image.Image) else picture
