"""A growing recording: each look reads only what is new, and other commands get the device first."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from cache.base.errors import StoreError
from cache.base.listener import Listener
from cache.base.text import printable
from cache.layout import now
from cache.leases import active_leases, held_lease
from cache.manifest import FrameEntry, Manifest, SkippedFrame, list_manifests, read_manifest, write_manifest
from cache.pixel_index import FileStamp, PixelIndex
from cache.stats import StoreLimit
from cache.store import Store
from cache.thumbnails import Thumbnails
from cache.trash import is_alive
from checkpoint.folder import find_checkpoint
from checkpoint.identity import model_of
from precompute.loaded import Loaded, load_encoder
from precompute.options import EncodeOptions
from precompute.pass_one import chosen_encoder
from precompute.pipeline import EncodeResult, Progress, encode_recording
from sources.escribano_db import FRAME
from sources.recording import Frame, Recording

QUIET_S = 1.0  # a file that changed later than this ago may be half-written
GIVEN_UP_S = 10.0  # one that is quiet for so long and cannot be read is named as skipped
ASK_S = 2.0
_GOES_FIRST = ("describe", "bridge", "serve", "verify-cache", "bench")


class Gate(Listener):
    """Holds pass one back while the machine is on battery, or a command wants the device.

    As a listener it passes on what pass one reports, and waits at each frame.
    """

    def __init__(self, store: Path, listener: Listener, on_battery: bool = False) -> None:
        self._store, self._listener, self._on_battery = store, listener, on_battery
        self._asked_s, self._said = -ASK_S, ""

    def say(self, line: str) -> None:
        """Pass a line on."""
        self._listener.say(line)

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        """Wait, and pass on how far the work is."""
        self.wait()
        self._listener.show(what, unit, num_done, num_all, note)

    def wait(self) -> None:
        """Return when nothing stands against encoding; the reason of a wait is said once."""
        if time.monotonic() - self._asked_s < ASK_S:
            return
        while reason := self._reason():
            if reason != self._said:
                self.say(f"Waiting: {reason}.")
            self._said = reason
            time.sleep(ASK_S)
        self._asked_s, self._said = time.monotonic(), ""

    def _reason(self) -> str:
        if not self._on_battery and runs_on_battery():
            return "on battery (--on-battery encodes all the same)"
        busy = (
            lease.purpose
            for lease in active_leases(self._store)
            if lease.purpose.partition(" ")[0] in _GOES_FIRST and is_alive(lease.name)
        )
        return next((f"{printable(purpose)} runs" for purpose in busy), "")


def runs_on_battery() -> bool:
    """Tell whether this machine runs on its battery; one that has none does not."""
    import psutil

    battery = psutil.sensors_battery()
    return bool(battery is not None and battery.power_plugged is False)


@contextmanager
def alone(store: Store, purpose: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lease once no other process holds one of the same purpose: what that encodes is a hit then."""
    has_said = False
    while True:
        with held_lease(store, purpose):  # before the look, so that of two processes one sees the other
            leases = [lease for lease in active_leases(store.path) if lease.purpose == purpose]
            if sum(is_alive(lease.name) for lease in leases) <= 1:
                yield
                return
        if not has_said:
            say(f"Waiting: another {printable(purpose)} runs.")
        has_said = True
        time.sleep(random.uniform(ASK_S / 4, ASK_S))  # noqa: S311 - so that two do not meet for ever


class Growing:
    """One growing recording; each look encodes only its new frames."""

    def __init__(
        self,
        store: Store,
        options: EncodeOptions,
        recording: Recording,
        listener: Listener,
        loaded: Loaded,
    ) -> None:
        """Find the encoder: the one that is asked for, else that of before.

        Raises:
            CheckpointError: the model is missing or not supported.
        """
        self._store, self._options, self._listener, self._loaded = store, options, listener, loaded
        self._limit = StoreLimit.of(store)
        id_ = recording.info.id
        refs = [ref for ref in list_manifests(store.home) if ref.recording.id == id_]
        model = options.model or model_of(store.home, id_, refs[0].encoder_id if refs else None)
        self._checkpoint = find_checkpoint(model, listener.say)
        with PixelIndex(store.home) as index:
            earlier = [ref.encoder for ref in refs]
            self._spec = chosen_encoder(self._checkpoint, index, options, earlier, model, listener.say)
        # Of each frame, by the row or the file that it is: its stamp when it was read, and what it gave.
        self._seen: dict[str, tuple[FileStamp | None, FrameEntry | SkippedFrame]] = {}
        for ref in refs:
            if ref.encoder_id == self._spec.encoder_id:
                with suppress(StoreError):
                    frames = read_manifest(ref.path).frames
                    self._seen = {_place(frame.source): (None, frame) for frame in frames}
        self.recording = recording  # as it was at the last look
        self._written: Manifest | None = None
        self.result: EncodeResult | None = None

    def look(self, recording: Recording, gate: Gate) -> bool:
        """Encode the frames that are new and quiet; tell whether some are not quiet yet."""
        self.recording = recording
        ready, pending = self._ready(recording.frames())
        if ready:
            gate.wait()
            self._encode(ready, gate)
        self.write()
        return pending

    def _ready(self, frames: Sequence[Frame]) -> tuple[list[Frame], bool]:
        """Return the frames that are to be read now, and whether others will be later."""
        ready, pending, now_ns = list[Frame](), False, time.time_ns()
        for frame in frames:
            stamp, seen = frame.stamp, self._seen.get(_place(frame.source))
            if seen is not None and (seen[0] == stamp or not stamp.path):  # a file that is gone was seen
                continue
            changed_ns = stamp.ctime_ns or stamp.mtime_ns
            if changed_ns and 0 <= now_ns - changed_ns < QUIET_S * 1e9:
                pending = True
            elif not stamp.position and stamp.path and not stamp.size and _age_s(stamp) < GIVEN_UP_S:
                pending = True  # made, and nothing written yet
            else:
                ready.append(frame)
        return ready, pending

    def _encode(self, ready: Sequence[Frame], gate: Gate) -> None:
        recording = self.recording
        asked = tuple(replace(frame, index=number) for number, frame in enumerate(ready))

        def wait(_: Progress) -> None:
            gate.wait()

        purpose = f"encode {recording.info.id}"
        with (
            alone(self._store, purpose, self._listener.say),
            PixelIndex(self._store.home) as index,
        ):
            result = encode_recording(
                replace(recording, _frames=asked),
                self._spec,
                self._store,
                index,
                partial(load_encoder, self._checkpoint, self._spec, self._loaded),
                wait,
                Thumbnails(self._store.home) if self._options.thumbnails else None,
                self._limit,
            )
        before, done = self.result.progress if self.result is not None else Progress(), result.progress
        given: list[FrameEntry | SkippedFrame] = [*result.manifest.frames, *result.manifest.skipped]
        for found in given:
            self._seen[_place(found.source)] = (asked[found.index].stamp, found)
        progress = replace(
            done,
            num_done=before.num_done + done.num_done,
            num_hits=before.num_hits + done.num_hits,
            num_new=before.num_new + done.num_new,
            num_bytes=before.num_bytes + done.num_bytes,
        )
        self.result = replace(result, progress=progress)
        if result.interrupted:
            raise KeyboardInterrupt
        if result.stopped:
            self.write()
            raise StoreError(result.stopped)

    def write(self) -> None:
        """Write the manifest of all frames that are there now, if it says something new."""
        recording, complete = self.recording, True
        frames, skipped = list[FrameEntry](), list[SkippedFrame]()
        for frame in recording.frames():
            _, seen = self._seen.get(_place(frame.source), (None, None))
            complete &= seen is not None
            if isinstance(seen, FrameEntry):
                frames.append(replace(seen, index=frame.index, timestamp_s=frame.timestamp_s, neighbour=None))
            elif isinstance(seen, SkippedFrame) and _age_s(frame.stamp) >= GIVEN_UP_S:
                skipped.append(replace(seen, index=frame.index, timestamp_s=frame.timestamp_s))
        if not frames:
            return
        info = replace(recording.info, num_frames=len(recording.frames()))
        manifest = Manifest(info, self._spec, tuple(frames), tuple(skipped), complete, now())
        progress = self.result.progress if self.result is not None else Progress()
        progress = replace(progress, num_frames=info.num_frames, num_skipped=len(skipped))
        self.result = EncodeResult(manifest, progress, not complete, left_out=recording.left_out)
        before = self._written
        if before is None or replace(manifest, created_at=before.created_at) != before:
            write_manifest(self._store.home, manifest, self._store.durability)
            self._written = manifest


def _place(source: str) -> str:
    """Return what stays of a frame when its file goes: the row of a database that names it, else its path."""
    _, mark, row = source.rpartition("#")
    return row if mark and row.startswith(f"{FRAME}=") else source


def _age_s(stamp: FileStamp) -> float:
    return abs(time.time() - stamp.mtime_ns / 1e9) if stamp.mtime_ns else GIVEN_UP_S
