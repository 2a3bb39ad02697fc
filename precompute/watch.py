"""Watching what grows until Ctrl-C: a folder of pictures, Cap's bundles, Escribano's recorder."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import counted, printable
from cache.leases import record_use
from cache.store import Store
from precompute.growing import Gate, Growing, alone
from precompute.loaded import Loaded
from precompute.options import EncodeOptions
from precompute.pass_one import encode
from precompute.pipeline import EncodeResult
from sources import cap, escribano
from sources.escribano_db import DAY, is_database_name
from sources.folder import FOLDER
from sources.recording import FrameChoice, recording_id
from sources.recordings import locate, open_recording

_WAKE_MS = 1000
_LOOK_S = 60.0  # a change of a file that is kept open is not always reported
_SAY_S = 60.0
_REST_S = 1e-3  # for each frame


@dataclass(frozen=True, slots=True)
class WatchedPlace:
    """What is watched: a folder of pictures, a folder of Cap's bundles, or Escribano's database."""

    path: Path
    kind: str

    def concerns(self, changed: str) -> bool:
        """Tell whether a change of this path may be something new here; of a database ``state`` tells."""
        if self.kind == cap.KIND:
            return changed.startswith(f"{self.path}{os.sep}") and Path(changed).name == cap.META
        return self.kind == FOLDER and Path(changed).parent == self.path

    def state(self) -> tuple[int, ...]:
        """Return what a write to a database changes, and reading it does not; or another folder there."""
        found = []
        for path in (self.path, Path(f"{self.path}-wal")):
            with suppress(OSError):
                status = path.stat()
                found += [status.st_ino, status.st_size, status.st_mtime_ns] if status.st_size else []
        return tuple(found)


def places_of(selector: str | None) -> list[WatchedPlace]:
    """Return what a RECORDING of ``encode --watch`` means; without one, Escribano's recorder and Cap.

    Raises:
        InputError: it does not grow, or there is nothing to watch.
    """
    if selector is None:
        database = escribano.default_database()
        found = [] if database is None else [WatchedPlace(database, escribano.KIND)]
        found += [WatchedPlace(folder, cap.KIND) for folder in cap.places()]
        if not found:
            raise InputError("neither Escribano nor Cap records here: name the folder that grows")
        return found
    path = Path(selector)
    if not path.is_dir() and not is_database_name(path):
        path = locate(selector)
    if "#" in path.name and (match := escribano.split_place(str(path))):
        path = match.database
    path = path.resolve()
    if is_database_name(path):
        return [WatchedPlace(path, escribano.KIND)]
    if path.suffix == cap.SUFFIX and path.is_dir():
        return [WatchedPlace(path.parent, cap.KIND)]
    if not path.is_dir():
        raise InputError(f"{printable(path)} does not grow: --watch takes a folder, or Escribano's database")
    is_caps = path in cap.places() or any(path.glob(f"*{cap.SUFFIX}"))
    return [WatchedPlace(path, cap.KIND if is_caps else FOLDER)]


class Watch:
    """Encodes what comes, until it is interrupted; ``results`` are the recordings that it worked on."""

    def __init__(
        self, home: Home, options: EncodeOptions, listener: Listener, *, on_battery: bool = False
    ) -> None:
        self._home, self._options, self._listener = home, options, listener
        self._store = Store.open(home, durability=options.durability)
        self._gate = Gate(self._store.path, listener, on_battery)
        self._loaded: Loaded = {}
        self._growing: dict[str, Growing] = {}
        self._bundles: dict[Path, int] = {}
        self._said = (time.monotonic(), 0)
        self._problems: dict[str, str] = {}
        self._encoded: dict[str, EncodeResult] = {}

    @property
    def results(self) -> dict[str, EncodeResult]:
        """The recordings that were worked on, by their paths."""
        grown = {name: one.result for name, one in self._growing.items() if one.result is not None}
        return self._encoded | grown

    def run(self, places: Sequence[WatchedPlace], ended: Callable[[], bool] = lambda: False) -> None:
        """Watch until ``KeyboardInterrupt``, or until ``ended`` says so.

        Raises:
            CheckpointError: the model is missing or not supported.
            StoreError: the disk is full, or the store cannot be written.
        """
        try:
            self._run(places, ended)
        except KeyboardInterrupt:  # wherever it came, what was encoded has a manifest
            for growing in self._growing.values():
                growing.write()
            raise

    def _run(self, places: Sequence[WatchedPlace], ended: Callable[[], bool]) -> None:
        states = [place.state() for place in places]
        due, looked_s = self._look(places), time.monotonic()
        for changed in _changes(places):
            before, states = states, [place.state() for place in places]
            waited_s = time.monotonic() - looked_s
            due |= changed or states != before or waited_s >= _LOOK_S
            if due and waited_s >= self._rest_s():
                due, looked_s = self._look(places), time.monotonic()
                self._report()
            elif not due and ended():
                return

    def _rest_s(self) -> float:
        """Return how long to rest after a look: all frames are listed in a tenth of that."""
        return _REST_S * sum(len(growing.recording.frames()) for growing in self._growing.values())

    def note_use(self) -> None:
        """Leave a note in the store of what was worked on."""
        for result in self.results.values():
            done = result.progress
            id_ = result.manifest.recording.id
            record_use(self._store, "encode", id_, done.num_hits, done.num_new, done.num_bytes)

    def _report(self) -> None:
        """Say now and then how many frames were encoded."""
        num_new = sum(result.progress.num_new for result in self.results.values())
        if num_new != self._said[1] and time.monotonic() - self._said[0] >= _SAY_S:
            self._listener.say(f"{counted(num_new, 'frame')} encoded so far.")
            self._said = (time.monotonic(), num_new)

    def _look(self, places: Sequence[WatchedPlace]) -> bool:
        """Encode what is new; tell whether something is there that was not ready."""
        pending = False
        for place in places:
            if place.kind == cap.KIND:
                self._encode_bundles(place.path)
                continue
            for name in self._names(place):
                try:
                    pending |= self._encode_growing(name)
                    self._problems.pop(name, None)
                except InputError as error:
                    if self._problems.get(name) != str(error):
                        self._listener.say(f"Nothing to encode yet: {error}")
                    self._problems[name] = str(error)
        return pending

    def _names(self, place: WatchedPlace) -> list[str]:
        """Return the recordings at a place that may grow: of the recorder today, and the day before it."""
        if place.kind != escribano.KIND:
            return [str(place.path)]
        days = [name for name in self._growing if name.startswith(f"{place.path}#")]
        today = f"{place.path}#{DAY}={datetime.now().astimezone().date().isoformat()}"
        return list(dict.fromkeys([*days[-1:], today]))

    def _encode_growing(self, name: str) -> bool:
        recording = open_recording(name, FrameChoice())
        if name not in self._growing:
            self._growing[name] = Growing(self._store, self._options, recording, self._listener, self._loaded)
        try:
            return self._growing[name].look(recording, self._gate)
        finally:
            recording.close()

    def _encode_bundles(self, folder: Path) -> None:
        """Encode the bundles that were finished today and not encoded as they are now."""
        today_s = datetime.now().replace(hour=0, minute=0, second=0).timestamp()
        for bundle in sorted(folder.glob(f"*{cap.SUFFIX}")):
            with suppress(InputError, OSError):  # it is being recorded
                changed = (bundle / cap.META).stat()
                if self._bundles.get(bundle) == changed.st_mtime_ns or changed.st_mtime < today_s:
                    continue
                cap.read_meta(bundle)
                self._encode_bundle(bundle)
                self._bundles[bundle] = changed.st_mtime_ns

    def _encode_bundle(self, bundle: Path) -> None:
        self._gate.wait()
        try:
            options = replace(self._options, recording=str(bundle))
            with alone(self._store, f"watch {recording_id(bundle)}", self._listener.say):
                result = encode(self._home, options, self._gate, self._loaded)
        except InputError as error:
            self._listener.say(f"{error}")
            return
        self._encoded[str(bundle)] = result
        if result.interrupted:
            raise KeyboardInterrupt


def _changes(places: Sequence[WatchedPlace]) -> Iterator[bool]:
    """Yield about once a second whether something changed at these places."""
    from watchfiles import watch

    deep = any(place.kind == cap.KIND for place in places)
    folders = dict.fromkeys(place.path for place in places if place.kind != escribano.KIND)
    changes = watch(
        *folders,
        watch_filter=lambda _, path: any(place.concerns(path) for place in places),
        debounce=_WAKE_MS,
        rust_timeout=_WAKE_MS,
        yield_on_timeout=True,
        recursive=deep,
        raise_interrupt=True,
        ignore_permission_denied=True,
    )
    with suppress(OSError):  # it is gone, or the system watches too much already
        yield from map(bool, changes if folders else ())
    while True:  # each is asked for its state
        time.sleep(_WAKE_MS / 1000)
        yield False
