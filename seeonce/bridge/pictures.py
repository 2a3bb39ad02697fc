"""The pictures that a bridge is shown: each is encoded once and named by a manifest, so that it stays."""

import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from cache.base.errors import InputError, StoreError
from cache.base.text import printable
from cache.key import EncoderSpec
from cache.layout import now
from cache.manifest import (
    FrameEntry,
    Manifest,
    RecordingInfo,
    manifest_path,
    read_manifest,
    write_manifest,
)
from cache.pixel_index import PixelIndex
from cache.stats import StoreLimit
from cache.store import Store
from cache.thumbnails import Thumbnails
from checkpoint.config import Checkpoint
from precompute.loaded import Loaded, load_encoder
from precompute.pipeline import encode_recording
from seeonce.bridge.messages import Picture
from sources.folder import LIST, stamp_of
from sources.recording import Frame, Recording, id_of, resolve

_WRITE_AFTER_S = 5.0  # a manifest is written whole; entries are safe for a day without one


class Pictures:
    """Encodes pictures for one encoder; those of one folder are the frames of one recording."""

    def __init__(
        self,
        store: Store,
        index: PixelIndex,
        checkpoint: Checkpoint,
        spec: EncoderSpec,
    ) -> None:
        """Begin with no encoder loaded: pictures that the store knows need none."""
        self._store, self._index = store, index
        self._checkpoint, self._spec = checkpoint, spec
        self._loaded: Loaded = {}
        self._limit = StoreLimit.of(store)
        self._recordings: dict[str, dict[str, FrameEntry]] = {}
        self._infos: dict[str, RecordingInfo] = {}
        self._unwritten: dict[str, float] = {}

    def frames(self, shown: Sequence[Picture]) -> list[FrameEntry]:
        """Return the frame of each picture; one that is new is encoded.

        Raises:
            InputError: a picture cannot be read.
            StoreError: the disk is full or refuses, or the store is as large as it may be.
        """
        places = [resolve(picture.path) for picture in shown]
        frames = tuple(
            Frame(number, picture.time_s, printable(place), stamp_of(place))
            for number, (place, picture) in enumerate(zip(places, shown, strict=True))
        )
        info = self._info(places[0].parent)
        result = encode_recording(
            Recording(info, frames),
            self._spec,
            self._store,
            self._index,
            partial(load_encoder, self._checkpoint, self._spec, self._loaded),
            thumbnails=Thumbnails(self._store.home),
            limit=self._limit,
        )
        # What was encoded before an end or beside a picture that cannot be read is kept, too.
        noted = [self._note(places[frame.index].parent, frame) for frame in result.manifest.frames]
        if result.interrupted:
            raise KeyboardInterrupt
        if result.stopped:
            raise StoreError(result.stopped)
        if result.manifest.skipped:
            raise InputError(result.manifest.skipped[0].reason)
        return noted

    def write(self, *, at_once: bool = False) -> None:
        """Write the manifests that have grown some seconds ago, or all that have grown."""
        for id_, since_s in list(self._unwritten.items()):
            if at_once or time.monotonic() - since_s >= _WRITE_AFTER_S:
                frames = tuple(self._recordings[id_].values())
                info = replace(self._infos[id_], num_frames=len(frames))
                write_manifest(
                    self._store.home,
                    Manifest(info, self._spec, frames, (), complete=True, created_at=now()),
                    self._store.durability,
                )
                del self._unwritten[id_]

    def unload(self) -> None:
        """Let go of the encoder's memory."""
        self._loaded.clear()
        gc.collect()

    def _note(self, folder: Path, frame: FrameEntry) -> FrameEntry:
        """Add a frame to the recording of its folder, or put it in the place of an older one of that file."""
        info = self._info(folder)
        known = self._recordings[info.id]
        earlier = known.get(frame.source)
        noted = replace(frame, index=len(known) if earlier is None else earlier.index)
        if noted != earlier:
            known[frame.source] = noted
            self._unwritten.setdefault(info.id, time.monotonic())
        return noted

    def _info(self, folder: Path) -> RecordingInfo:
        """Return the recording of a folder, with the frames that an earlier bridge was shown of it."""
        id_ = id_of(f"bridge {folder.parent.name} {folder.name}", "bridge", os.fsencode(folder))
        if id_ not in self._infos:
            name = f"shown by Escribano from {printable(folder)}"[:200]
            self._infos[id_] = RecordingInfo(id_, name, LIST, "-", now(), 0, None, None)
            self._recordings[id_] = {}
            with suppress(OSError, StoreError):
                path = manifest_path(self._store.home, id_, self._spec.encoder_id)
                manifest = read_manifest(path)
                self._infos[id_] = manifest.recording
                self._recordings[id_] = {frame.source: frame for frame in manifest.frames}
        return self._infos[id_]
