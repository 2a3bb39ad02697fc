"""Pass one: every frame of a recording that the store lacks goes through the encoder once.

    Frame -> (reading threads: decode) -> (threads: digest, thumbnail, patches) -> Prepared
          -> (encoder: the next frame begins before the last is finished) -> Features
          -> (writer thread) -> entry in the store

Memory does not grow with the recording: a few frames and a few features are under way at any time.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from cache.base.errors import InputError
from cache.entries import Entries
from cache.entry import EntryInfo, Features, Provenance, bytes_per_token, num_merged_tokens
from cache.key import EncoderSpec, EntryKey, PixelDigest, entry_key, pixel_digest
from cache.layout import now
from cache.manifest import FrameEntry, Manifest, SkippedFrame
from cache.pixel_index import FileStamp, KnownPixels, PixelIndex
from cache.stats import LimitReachedError, StoreLimit
from cache.thumbnails import Thumbnails
from precompute.patches import Patches, cut_into_patches
from precompute.writer import EntryWriter
from sources.near_duplicates import NearDuplicates
from sources.pixels import pixels_array
from sources.recording import Frame, Recording

if TYPE_CHECKING:
    from PIL import Image

    from precompute.encoder import VisionEncoder

# Preparing takes a fraction of what encoding takes, so few threads keep up with any encoder. Each holds a
# picture three times (decoded, resized, cut): 25 MB at 1920x1080. What waits for the encoder is held once.
_MAX_WORKERS = 16
_PREPARED_AHEAD = 4
_MIN_SHARE_SHOWN = 0.01  # of the time
_IN_FLIGHT = 2  # pictures on the device: one computes while the one before it is copied to the host
_DURABLE_BY_THEN = timedelta(hours=1)

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")


def prefetch(
    items: Iterable[Item],
    readers: ThreadPoolExecutor,
    read: Callable[[Item], Read],
    workers: ThreadPoolExecutor,
    work: Callable[[Item, Read], Made],
    max_pending: int,
) -> "Iterator[tuple[Item, Future[Made]]]":
    """Yield items in order, each with the future of its work; an error of its work is raised by that.

    At most ``max_pending`` are under way. Each is read in ``readers``, in order when that is one thread, and
    ``work`` makes something of what was read in ``workers``.
    """
    remaining = iter(items)
    waiting: deque[tuple[Item, Future[Made]]] = deque()

    def made(item: Item, read: "Future[Read]") -> Made:
        return work(item, read.result())

    def submit(num_items: int) -> None:
        for item in islice(remaining, num_items):
            waiting.append((item, workers.submit(made, item, readers.submit(read, item))))

    submit(max_pending)
    while waiting:
        yield waiting.popleft()
        submit(1)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far pass one is. A frame is done, and its entry new, when the store acknowledged the entry.

    ``num_bytes`` counts what was written, in bytes of payload; ``num_near`` frames use a neighbour's entry.
    """

    num_frames: int = 0
    num_done: int = 0
    num_hits: int = 0
    num_new: int = 0
    num_skipped: int = 0
    num_bytes: int = 0
    num_near: int = 0


@dataclass(slots=True)
class Seconds:
    """What pass one's own thread spent its time on, from the first picture that was encoded to the end.

    It waits for the ``encoder``, for ``pictures`` that are not decoded yet while the encoder has nothing to
    do, or for the ``writer`` to take features; the rest of ``total`` is small.
    """

    encoder: float = 0.0
    pictures: float = 0.0
    writer: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        """Say in shares of the total what was the bound: "encoder 97 %", "waits for decoding: 30 %"."""
        shares = {"waits for decoding": self.pictures, "waits for the disk": self.writer}
        waits = [
            f", {what}: {took_s / self.total:.0%}"
            for what, took_s in shares.items()
            if took_s > _MIN_SHARE_SHOWN * self.total
        ]
        return (f"encoder {self.encoder / self.total:.0%}" + "".join(waits)).replace("%", " %")


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What pass one did: the manifest that it leaves, and how it went.

    ``stopped`` says why it ended early, when the store became as large as it may be. ``left_out`` names
    other files beside the frames.
    """

    manifest: Manifest
    progress: Progress
    interrupted: bool
    stopped: str = ""
    left_out: tuple[str, ...] = ()
    seconds: Seconds = field(default_factory=Seconds)


_Decoded = tuple[FileStamp, "Image.Image"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A frame whose pixels are known: a hit, or a miss with the patches that are to be encoded.

    ``phash`` is its perceptual hash, where near duplicates are looked for.
    """

    known: KnownPixels
    hit: EntryInfo | None
    patches: Patches | None
    phash: int | None = None


def encode_recording(
    recording: Recording,
    spec: EncoderSpec,
    store: Entries,
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
    run = _PassOne(spec, store, index, load_encoder, num_frames, on_progress, thumbnails, limit, near)
    interrupted, stopped = False, ""
    try:
        run.go(recording)
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
        complete=not interrupted and not stopped,
        created_at=now(),
    )
    return EncodeResult(manifest, run.progress(), interrupted, stopped, recording.left_out, run.seconds)


class _PassOne:
    """One execution of pass one. Only the thread of ``go`` touches it, but for the queue of the writer."""

    def __init__(
        self,
        spec: EncoderSpec,
        store: Entries,
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
        self._kept: tuple[FrameEntry, int] | None = None  # the last with an entry of its own, and its phash
        self._num_near = 0
        self._spec, self._store, self._index = spec, store, index
        self._writer = EntryWriter(store, spec)
        self._thumbnails = thumbnails
        self._load_encoder = load_encoder
        self._encoder: VisionEncoder | None = None
        self._in_flight: deque[tuple[PixelDigest, Callable[[], Features], Provenance]] = deque()
        self.seconds, self._started_s = Seconds(), 0.0
        self._num_frames, self._on_progress = num_frames, on_progress
        self._num_hits = self._num_new = self._num_bytes = 0
        # Of each picture met so far: grid_thw, and how many merged tokens it makes.
        self._sizes: dict[PixelDigest, tuple[tuple[int, int, int], int]] = {}
        self._frames: list[FrameEntry] = []
        # Pictures whose entries are not acknowledged yet, each with how many frames show it.
        self._waiting: Counter[PixelDigest] = Counter()
        self._num_waiting = 0
        self._recent_hits: set[EntryKey] = set()
        self.skipped: list[SkippedFrame] = []

    def go(self, recording: Recording) -> None:
        num_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
        try:
            with (
                self._writer,
                ThreadPoolExecutor(recording.max_readers) as readers,
                ThreadPoolExecutor(num_workers) as workers,
            ):
                max_pending = num_workers + _PREPARED_AHEAD
                likely_near = frozenset[int]() if self._near is None else self._near.likely
                # A likely near duplicate is decoded only if the picture it looks like cannot be read.
                frames = prefetch(
                    recording.frames(),
                    readers,
                    lambda frame: None if frame.index in likely_near else self._read(frame),
                    workers,
                    lambda frame, read: None if read is None else self._prepare(frame, read),
                    max_pending,
                )
                try:
                    for frame, prepared in frames:
                        self._wait_for(prepared)
                        self._add_frame(frame, prepared)
                        self._count_acknowledged()
                        self._on_progress(self.progress())
                except BaseException as error:
                    for pool in (readers, workers):
                        pool.shutdown(wait=False, cancel_futures=True)
                    if isinstance(error, KeyboardInterrupt | LimitReachedError):
                        self._finish_all()  # the device computes it in any case
                    raise
                self._finish_all()
                finished_s = time.perf_counter()
            self.seconds.writer += time.perf_counter() - finished_s
        finally:
            self._count_acknowledged()
            if self._encoder is not None:
                self.seconds.total = time.perf_counter() - self._started_s
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
        self._store.make_durable(self._recent_hits)
        return [frame for frame in self._frames if frame.pixels not in self._waiting]

    def _count_acknowledged(self) -> None:
        for pixels, num_bytes in self._writer.acknowledged():
            self._num_waiting -= self._waiting.pop(pixels)
            self._num_new += 1
            self._num_bytes += num_bytes

    def _read(self, frame: Frame) -> "Prepared | _Decoded":
        """Decode a frame unless it is a known hit."""
        phash = None if self._near is None else self._near.known(frame)
        known = self._index.get(frame.stamp)
        if known is not None and (self._near is None or phash is not None):
            hit = self._entry(known)
            if hit is not None:
                return Prepared(known, hit, None, phash)
        stamp = frame.stamp.current()
        return stamp, frame.read()

    def _prepare(self, frame: Frame, read: "Prepared | _Decoded") -> Prepared:
        """Work out a frame's key and, when it is no hit, what the encoder needs."""
        if isinstance(read, Prepared):
            return read
        stamp, image = read
        known = KnownPixels(pixel_digest(pixels_array(image)), image.width, image.height)
        self._index.put(stamp, known)
        if self._thumbnails is not None and not self._thumbnails.has(known.pixels):
            self._thumbnails.write(known.pixels, image)
        phash = None if self._near is None else self._near.of(frame, known.pixels, image)
        hit = self._entry(known)
        is_new = hit is None and known.pixels not in self._sizes
        patches = cut_into_patches(image, self._spec.preprocessing) if is_new else None
        return Prepared(known, hit, patches, phash)

    def _entry(self, known: KnownPixels) -> EntryInfo | None:
        return self._store.entry_info(entry_key(known.pixels, self._spec.encoder_id))

    def _add_frame(self, frame: Frame, prepared: "Future[Prepared | None]") -> None:
        """Add a frame: skipped, near the last one, a hit, a repeat within this run, or encoded now."""
        try:
            entry = self._near_duplicate(frame, prepared) or self._hit_or_encode(frame, prepared)
            self._frames.append(entry)
            if entry.pixels in self._waiting:
                self._waiting[entry.pixels] += 1
                self._num_waiting += 1
        except InputError as error:
            self.skipped.append(SkippedFrame(frame.index, frame.timestamp_s, frame.source, str(error)))

    def _near_duplicate(self, frame: Frame, prepared: "Future[Prepared | None]") -> FrameEntry | None:
        """Give a frame the entry of the last one that was kept, if it looks much the same."""
        if self._near is None or self._kept is None:
            return None
        ready = prepared.result()
        phash = self._near.known(frame) if ready is None else ready.phash
        kept, kept_phash = self._kept
        if phash is None or not self._near.near(phash, kept_phash):
            return None
        self._num_near += 1
        return replace(
            kept,
            index=frame.index,
            timestamp_s=frame.timestamp_s,
            source=frame.source,
            neighbour=kept.index,
        )

    def _hit_or_encode(self, frame: Frame, prepared: "Future[Prepared | None]") -> FrameEntry:
        ready = prepared.result() or self._prepare(frame, self._read(frame))
        pixels = ready.known.pixels
        if ready.patches is not None and pixels not in self._sizes:
            self._encode(pixels, ready.patches)
        else:
            self._num_hits += 1
        if ready.hit is not None:
            if _maybe_not_durable(ready.hit):
                self._recent_hits.add(ready.hit.key)
            self._sizes[pixels] = (ready.hit.grid_thw, ready.hit.num_tokens)
        grid_thw, num_tokens = self._sizes[pixels]
        entry = FrameEntry(
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
        self._kept = None if ready.phash is None else (entry, ready.phash)
        return entry

    def _encode(self, pixels: PixelDigest, patches: Patches) -> None:
        """Begin to encode a picture, and finish the one before it while the device computes."""
        if self._encoder is None:
            self._encoder = self._load_encoder()
            self._started_s = time.perf_counter()
        tokens = num_merged_tokens(patches.grid_thw, self._spec.preprocessing.merge_size)
        if self._limit is not None:
            self._limit.take(tokens * bytes_per_token(self._spec))
        self._waiting[pixels] = 0  # before the writer can acknowledge it
        self._sizes[pixels] = (patches.grid_thw, tokens)
        with self._timed("encoder"):
            self._in_flight.append((pixels, self._encoder.start(patches), self._encoder.provenance))
        while len(self._in_flight) >= _IN_FLIGHT:
            self._finish_oldest()

    def _wait_for(self, prepared: "Future[Prepared | None]") -> None:
        """Wait for a frame to be prepared; meanwhile finish what the device computes."""
        if prepared.done():
            return
        self._finish_all()
        with self._timed("pictures"):
            wait([prepared])

    def _finish_all(self) -> None:
        while self._in_flight:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        pixels, features_of, provenance = self._in_flight.popleft()
        with self._timed("encoder"):
            features = features_of()
        with self._timed("writer"):
            self._writer.put(pixels, features, provenance)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Add to the seconds of ``what``, once there is an encoder that could work meanwhile."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            if self._encoder is not None:
                took_s = time.perf_counter() - started_s
                setattr(self.seconds, what, getattr(self.seconds, what) + took_s)


def _maybe_not_durable(entry: EntryInfo) -> bool:
    """Say whether an entry was made so lately that its writer may not have made it durable yet."""
    try:
        created_at = datetime.fromisoformat(entry.created_at)
        return datetime.now(UTC) - created_at < _DURABLE_BY_THEN
    except (ValueError, TypeError):  # no time, or one without its zone: we cannot know
        return True
