"""The bytes level of verify-cache: every digest of every entry, with no model and no picture.

What is right so far is noted in a file, so that an interrupted check goes on where it was.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import IO

from blake3 import blake3

from cache.base.errors import CannotCheckError, StoreError
from cache.base.listener import Listener
from cache.base.text import counted
from cache.entry import CHUNK_NAME, METADATA_NAME
from cache.key import EntryKey
from cache.layout import FRAMES, group_name, now
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.store import Store
from seeonce.verifier.report import Check

_MAX_AGE_S = 24 * 3600
_FORMAT = 1

# Reading, crc32c and BLAKE3 take turns within one entry, so entries side by side keep the disk busy.
_NUM_THREADS = min(4, os.cpu_count() or 1)


def check_recording_bytes(store: Store, manifests: list[Manifest], listener: Listener) -> Check:
    """Check every entry that the manifests of one recording name.

    Raises:
        CannotCheckError: they name none.
    """
    keys = _named_keys(manifests)
    if not keys:
        raise CannotCheckError(f"{manifests[0].recording.id} has no encoded frame: run seeonce encode.")
    return _check(store, manifests, keys, [], "", listener)


def check_store_bytes(store: Store, listener: Listener) -> Check:
    """Check every entry and every manifest of the store, named or not.

    Raises:
        CannotCheckError: there are no entries.
    """
    problems: list[str] = []
    manifests = []
    for ref in list_manifests(store.home, problems.append):
        try:
            manifests.append(read_manifest(ref.path))
        except StoreError as error:
            problems.append(str(error))
    stored = sorted(store.keys(), key=lambda key: key.hex)
    keys = list(dict.fromkeys([*_named_keys(manifests), *stored]))
    if not keys and not problems:
        raise CannotCheckError(f"the store {store.path} holds no entry: run seeonce encode.")
    where = f" and {len(manifests)} manifests, the whole store,"
    return _check(store, manifests, keys, problems, where, listener)


def _check(
    store: Store,
    manifests: list[Manifest],
    keys: list[EntryKey],
    problems: list[str],
    where: str,
    listener: Listener,
) -> Check:
    named = {frame.key: frame for manifest in manifests for frame in manifest.frames}
    problems += [problem for manifest in manifests for problem in _manifest_problems(manifest)]
    listener.begin(len(keys), "bytes", "entry")
    with _Progress(store, keys) as checked:
        left = [key for key in keys if not checked.has(key)]
        listener.advance(len(keys) - len(left))
        for key, problem in _scanned(store, left, named):
            if problem is None:
                checked.add(key)
            else:
                problems.append(f"entry {key.hex[:12]}: {problem}")
            listener.advance()
        checked.finish()
    words = f"every byte of {counted(len(keys), 'entry')}{where} against its digests"
    if len(left) < len(keys):
        words += f", {len(keys) - len(left)} of them by the run of {checked.since} that was interrupted"
    if problems:
        words = f"{counted(len(problems), 'problem')} in {counted(len(keys), 'entry')}{where}".rstrip(",")
    return Check("bytes", not problems, words, len(keys), len(keys), tuple(problems))


def _scanned(
    store: Store, keys: list[EntryKey], named: dict[EntryKey, FrameEntry]
) -> Iterator[tuple[EntryKey, str | None]]:
    """Yield each key with what is wrong with its entry, as they are done; few are under way at a time."""
    waiting = iter(keys)
    running: dict[Future[str | None], EntryKey] = {}
    with ThreadPoolExecutor(_NUM_THREADS, "seeonce-bytes") as threads:
        while True:
            for key in islice(waiting, 2 * _NUM_THREADS - len(running)):
                running[threads.submit(_problem, store, key, named.get(key))] = key
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _problem(store: Store, key: EntryKey, frame: FrameEntry | None) -> str | None:
    if problem := store.check(key):
        return problem
    info = store.peek(key)
    if info is None:
        return "it changed while it was checked"
    if frame is not None and (info.grid_thw, info.num_tokens) != (frame.grid_thw, frame.num_tokens):
        return "another grid than the manifest names"
    return None


def _named_keys(manifests: list[Manifest]) -> list[EntryKey]:
    return list(dict.fromkeys(frame.key for manifest in manifests for frame in manifest.frames))


def _manifest_problems(manifest: Manifest) -> list[str]:
    num_named = len(manifest.frames) + len(manifest.skipped)
    if manifest.complete and num_named != manifest.recording.num_frames:
        missing = f"the manifest names {num_named} frames of {manifest.recording.num_frames}"
        return [missing, *manifest.problems()]
    return manifest.problems()


class _Progress:
    """The entries that were found right so far, noted in a file; use as a context manager."""

    def __init__(self, store: Store, keys: Sequence[EntryKey]) -> None:
        """Take up what was noted of this very set of entries, if it is young enough to be believed."""
        hasher = blake3(store.store_id.encode())
        for key in sorted(key.hex for key in keys):
            hasher.update(key.encode())
        path = store.home.path / "verify" / f"bytes-{hasher.hexdigest()[:32]}.jsonl"
        self.since = now()
        self._store, self._path = store, path
        self._known: dict[str, list[int]] = {}
        self._file: IO[str] | None = None
        with suppress(OSError, ValueError, LookupError, TypeError):
            if time.time() - path.stat().st_mtime < _MAX_AGE_S:
                self._take_up(path.read_text(encoding="ascii").splitlines())

    def __enter__(self) -> "_Progress":
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = not self._known
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else os.O_APPEND)
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "w", encoding="ascii")
            if fresh:
                self._write({"format": _FORMAT, "since": self.since})
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def has(self, key: EntryKey) -> bool:
        """Tell whether an entry was found right and its files have not changed since."""
        known = self._known.get(key.hex)
        return known is not None and known == self._stamp(key)

    def add(self, key: EntryKey) -> None:
        """Note that an entry is right."""
        with suppress(OSError):
            self._write({"key": key.hex, "stamp": self._stamp(key)})

    def finish(self) -> None:
        """Forget everything: the check has come to its end."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _take_up(self, lines: list[str]) -> None:
        header = json.loads(lines[0])
        if header["format"] != _FORMAT:
            return
        self.since = str(header["since"])
        for line in lines[1:]:
            with suppress(ValueError):  # the last line of a killed process may be cut
                entry = json.loads(line)
                self._known[entry["key"]] = entry["stamp"]

    def _write(self, line: object) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _stamp(self, key: EntryKey) -> list[int] | None:
        folder = self._store.path / FRAMES / group_name(key) / key.hex
        stamp: list[int] = []
        try:
            for name in (METADATA_NAME, CHUNK_NAME):
                found = os.stat(folder / name, follow_symlinks=False)  # noqa: PTH116
                stamp += [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        except OSError:
            return None
        return stamp
