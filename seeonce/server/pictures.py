"""From what a client sends as a picture to a frame: known to the store, or ready to be encoded."""

import asyncio
import base64
import binascii
import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cache.base.errors import InputError, SeeonceError
from cache.base.home import Home
from cache.entry import num_merged_tokens
from cache.key import EncoderSpec, EntryKey, entry_key, pixel_digest
from cache.layout import RECORDINGS
from cache.manifest import FrameEntry, Manifest, ManifestHead, read_manifest
from cache.pixel_index import FileStamp
from cache.store import Store
from checkpoint.identity import with_max_pixels
from precompute.patches import cut_into_patches
from seeonce.runs.recording import LATEST, find_recording, manifest_for
from seeonce.server.asked import ImageUrl
from seeonce.server.errors import ApiError, as_api_error, refused
from seeonce.server.jobs import NewPicture
from seeonce.server.metrics import Metrics
from seeonce.server.models import ServedModel
from seeonce.server.options import ServeOptions
from seeonce.server.remote import fetch
from sources.pixels import pixels_array, read_image

LOW_PIXELS = 512 * 512
MAX_BYTES = 64 << 20
_MOST_KNOWN = 64
_FOUND_S = 60  # how long an entry that was found counts as there: the engine tells when it is gone
_DATA = re.compile(r"data:[^,]{0,200};base64,", re.I)
_FRAME = re.compile(r"seeonce:(?P<recording>.+)/(?P<frame>\d{1,9})", re.S)
_Stamps = dict[Path, FileStamp | None]


class Pictures:
    """Reads pictures in threads of its own, a few at a time: a large one takes hundreds of megabytes."""

    def __init__(self, home: Home, store: Store, options: ServeOptions, metrics: Metrics) -> None:
        self._home, self._store, self._options, self._metrics = home, store, options, metrics
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[_Stamps, dict[int, FrameEntry]]] = {}
        self._found: set[EntryKey] = set()
        self._found_until_s = 0.0
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="seeonce-pictures")

    async def frame(
        self, image: ImageUrl, where: str, model: ServedModel, max_pixels: int | None, keep: bool | None
    ) -> FrameEntry | NewPicture:
        """Return the frame of the picture that stands at ``where`` in its request.

        ``max_pixels`` is that of the whole request. ``keep`` stores its features, by default if the server
        does.

        Raises:
            ApiError: it is broken, too large, of a kind that is not allowed, or its frame is not encoded.
        """
        limit = image.max_pixels or max_pixels or (LOW_PIXELS if image.detail == "low" else None)
        keep = self._options.store if keep is None else keep and self._options.store
        loop = asyncio.get_running_loop()
        try:
            if image.url.startswith("seeonce:"):
                if image.max_pixels is not None:
                    raise refused("max_pixels: a stored frame is as it was encoded.", "messages")
                return await self._stored(image.url, model)
            data = await self._bytes(image.url)
            return await loop.run_in_executor(self._threads, self._picture, data, model, limit, keep)
        except SeeonceError as error:
            raise as_api_error(error, "messages", where) from error
        except ApiError as error:
            error.message = f"{where}: {error.message}"
            raise

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _bytes(self, url: str) -> bytes:
        scheme = url.partition(":")[0].lower() if ":" in url[:10] else ""
        loop = asyncio.get_running_loop()
        if scheme == "data":
            return await loop.run_in_executor(self._threads, _decoded, url)
        if scheme == "file":
            return await loop.run_in_executor(self._threads, self._file, url)
        if scheme in ("http", "https"):
            if not self._options.remote:
                raise refused(
                    "pictures are not fetched from the network here (the server was started "
                    "without --allow-remote-images): send a data: URL.",
                    "messages",
                )
            return await fetch(url, MAX_BYTES)
        raise refused(
            "expected a data: URL of base64, seeonce:RECORDING/FRAME, file: or https:.",
            "messages",
        )

    def _file(self, url: str) -> bytes:
        """Read a file under one of the folders that are allowed; links out of them lead nowhere."""
        parts = urlsplit(url)
        missing = refused("no such file under the folders that are allowed.", "messages")
        if parts.netloc not in ("", "localhost"):
            raise missing
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not any(path.is_relative_to(folder.resolve()) for folder in self._options.folders):
                raise missing
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                    raise missing
                return file.read(MAX_BYTES)
        except (OSError, ValueError, RuntimeError):
            raise missing from None

    async def _stored(self, url: str, model: ServedModel) -> FrameEntry:
        match = _FRAME.fullmatch(url)
        if match is None:
            raise refused("expected seeonce:RECORDING/FRAME, as in seeonce:demo/0.", "messages")
        recording, index = unquote(match["recording"]), int(match["frame"])
        loop = asyncio.get_running_loop()
        frames = self._known_frames(recording, model)
        if frames is None:
            frames = await loop.run_in_executor(self._threads, self._read_frames, recording, model)
        frame = frames.get(index)
        if frame is None:
            raise ApiError(404, f"{recording} has no frame {index}.", "messages", "not_encoded")
        if time.monotonic() > self._found_until_s:
            self._found, self._found_until_s = set(), time.monotonic() + _FOUND_S
        is_hit = frame.key in self._found
        if not is_hit and (is_hit := await loop.run_in_executor(self._threads, self._store.has, frame.key)):
            self._found.add(frame.key)
        self._count(is_hit=is_hit)
        return frame

    def _known_frames(self, recording: str, model: ServedModel) -> dict[int, FrameEntry] | None:
        """Return a recording's frames by their index; None when its manifest may be another by now."""
        with self._lock:
            stamps, frames = self._known.get((recording, model.name), ({}, {}))
        return frames if stamps and all(_stamp(path) == stamp for path, stamp in stamps.items()) else None

    def _read_frames(self, recording: str, model: ServedModel) -> dict[int, FrameEntry]:
        folder = self._home.store / RECORDINGS
        stamps = {folder: _stamp(folder)}  # another recording may be meant by the name now

        def read(ref: ManifestHead) -> Manifest:
            stamps.update({path: _stamp(path) for path in (ref.path.parent.parent, ref.path)})
            return read_manifest(ref.path)

        manifest = manifest_for(find_recording(self._home, recording), model.spec, model.name, read)
        frames = {frame.index: frame for frame in manifest.frames}
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            if recording != LATEST:
                self._known[recording, model.name] = stamps, frames
        return frames

    def _picture(
        self, data: bytes, model: ServedModel, max_pixels: int | None, keep: bool
    ) -> FrameEntry | NewPicture:
        image = read_image(data)
        spec = _lowered(model.spec, max_pixels)
        pixels = pixel_digest(pixels_array(image))
        key = entry_key(pixels, spec.encoder_id)
        entry = FrameEntry(0, 0.0, "", pixels, key, image.width, image.height, (1, 1, 1), 1)
        known = self._store.entry_info(key)
        self._count(is_hit=known is not None)
        if known is not None:
            return replace(entry, grid_thw=known.grid_thw, num_tokens=known.num_tokens)
        patches = cut_into_patches(image, spec.preprocessing)
        num_tokens = num_merged_tokens(patches.grid_thw, spec.preprocessing.merge_size)
        entry = replace(entry, grid_thw=patches.grid_thw, num_tokens=num_tokens)
        return NewPicture(entry, spec, patches, keep)

    def _count(self, *, is_hit: bool) -> None:
        (self._metrics.store_hits if is_hit else self._metrics.store_misses).inc()


def _stamp(path: Path) -> FileStamp | None:
    with suppress(OSError):  # it is gone
        return FileStamp.of(path)
    return None


def _decoded(url: str) -> bytes:
    match = _DATA.match(url)
    try:
        if match is None:
            raise ValueError("no base64")
        data = base64.b64decode(url[match.end() :].strip(), validate=True)
    except (ValueError, binascii.Error) as error:
        raise refused(f"a data: URL that is broken ({error}).", "messages") from error
    if not data:
        raise refused("a data: URL without a picture.", "messages")
    return data


def _lowered(spec: EncoderSpec, max_pixels: int | None) -> EncoderSpec:
    if max_pixels is None:
        return spec
    try:
        return with_max_pixels(spec, max_pixels)
    except InputError as error:
        least = (spec.preprocessing.patch_size * spec.preprocessing.merge_size) ** 2
        raise refused(f"max_pixels is {max_pixels}; expected at least {least}.", "messages") from error
