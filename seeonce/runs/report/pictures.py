"""The pictures of a report as data URIs: the store's thumbnails, or larger ones from the recordings."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from cache.base.errors import SeeonceError, StoreError
from cache.base.home import Home
from cache.key import EntryKey, PixelDigest, pixel_digest
from cache.manifest import Manifest, list_manifests, read_manifest
from cache.store import Store
from cache.thumbnails import Thumbnails
from precompute.options import reopen
from sources.pixels import pixels_array
from sources.recording import Frame

_LARGE, _LARGE_QUALITY = 1600, 60

PictureOf = Callable[[str], bytes | None]
"""Gives the WebP thumbnail of the frame of a key, or ``None``."""


class DataUris:
    """Thumbnails as data URIs, each once however many frames look alike."""

    def __init__(self, picture_of: PictureOf) -> None:
        """``picture_of`` is asked once for each key."""
        self._picture_of = picture_of
        self._numbers: dict[bytes, int] = {}
        self._of_key: dict[str, int | None] = {}
        self.uris: list[str] = []

    def number(self, key: str) -> tuple[int | None, bool]:
        """Return which of ``uris`` shows the frame of a key, and whether none did before.

        The number is ``None`` when the frame has no thumbnail.
        """
        before = len(self.uris)
        if key not in self._of_key:
            content = self._picture_of(key)
            self._of_key[key] = None if content is None else self._add(content)
        return self._of_key[key], len(self.uris) > before

    def _add(self, content: bytes) -> int:
        if content not in self._numbers:
            self._numbers[content] = len(self.uris)
            self.uris.append("data:image/webp;base64," + base64.b64encode(content).decode("ascii"))
        return self._numbers[content]


class Pictures:
    """The thumbnails and token counts of frames that manifests of some recordings name.

    Asked by key, not by index: a recording may have been encoded again since with other frames. A frame
    that no manifest names any more is looked up in the store.
    """

    def __init__(self, home: Home, recordings: set[str]) -> None:
        self._thumbnails = Thumbnails(home)
        self._known: dict[str, tuple[PixelDigest, int]] = {}
        self.manifests: list[Manifest] = []
        self._frames: dict[str, Frame] | None = None
        self._store = _store_or_none(home)
        for ref in list_manifests(home, lambda _: None):
            if ref.recording.id in recordings:
                self._take(ref.path)

    def picture(self, key: str) -> bytes | None:
        """Return the WebP thumbnail of the frame of a key; ``None`` where there is no thumbnail."""
        known = self._find(key)
        return None if known is None else self._thumbnails.read(known[0])

    def large_picture(self, key: str) -> bytes | None:
        """Return the frame of a key as WebP of up to 1600 pixels a side; its thumbnail where it is gone."""
        if self._frames is None:
            self._frames = {key: frame for one in self.manifests for key, frame in _frames_of(one)}
        known, frame = self._find(key), self._frames.get(key)
        if known is None or frame is None:
            return self.picture(key)
        try:
            image = frame.read()
        except SeeonceError:
            return self.picture(key)
        if pixel_digest(pixels_array(image)) != known[0]:  # another picture lies there now
            return self.picture(key)
        image.thumbnail((_LARGE, _LARGE))
        target = io.BytesIO()
        image.save(target, "WEBP", quality=_LARGE_QUALITY, icc_profile=b"", exif=b"")
        return target.getvalue()

    def num_tokens(self, key: str) -> int:
        """Return how many merged tokens the entry has; 0 when it is gone."""
        known = self._find(key)
        return 0 if known is None else known[1]

    def _take(self, manifest: Path) -> None:
        try:
            found = read_manifest(manifest)
        except StoreError:
            return
        self.manifests.append(found)
        self._known.update({frame.key.hex: (frame.pixels, frame.num_tokens) for frame in found.frames})

    def _find(self, key: str) -> tuple[PixelDigest, int] | None:
        if key not in self._known and self._store is not None:
            try:
                info = self._store.entry_info(EntryKey.from_hex(key))
            except (ValueError, SeeonceError):
                info = None
            if info is not None:
                self._known[key] = (info.pixels, info.num_tokens)
        return self._known.get(key)


def _frames_of(manifest: Manifest) -> Iterator[tuple[str, Frame]]:
    """Yield the frames of a recording, not decoded, by their keys; none where it is gone."""
    try:
        by_source = {frame.source: frame for frame in reopen(manifest).frames()}
    except SeeonceError:
        return
    for frame in manifest.frames:
        if frame.source in by_source and frame.neighbour is None:
            yield frame.key.hex, by_source[frame.source]


def _store_or_none(home: Home) -> Store | None:
    try:
        return Store.open(home, create=False)
    except SeeonceError:
        return None
