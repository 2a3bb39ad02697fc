"""Which entries an interrupted check of bytes has already found right: ``SEEONCE_HOME/verify/``.

One file for each set of entries; it is removed when the check ends by itself, so that the next one reads
everything again. An entry counts only while its files have the stamps that they had. Best effort: where
the file cannot be written, an interrupted check starts again.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from blake3 import blake3

from cache.entry_json import CHUNK_NAME, METADATA_NAME
from cache.home import Home
from cache.key import EntryKey
from cache.layout import FRAMES, group_name, now
from cache.store import Store

_MAX_AGE_S = 24 * 3600
_FORMAT = 1
Stamp = list[int]


class Checked:
    """What was found right so far; use as a context manager."""

    def __init__(self, store: Store, path: Path) -> None:
        """Take up the file ``path``, if it is young enough to be believed."""
        self.since = now()
        self._store, self._path = store, path
        self._known: dict[str, Stamp] = {}
        self._file: IO[str] | None = None
        with suppress(OSError, ValueError, LookupError, TypeError):
            if time.time() - path.stat().st_mtime < _MAX_AGE_S:
                self._take_up(path.read_text(encoding="ascii").splitlines())

    @classmethod
    def of(cls, home: Home, store: Store, keys: Sequence[EntryKey]) -> "Checked":
        """Find what was checked of this very set of entries."""
        hasher = blake3(store.store_id.encode())
        for key in sorted(key.hex for key in keys):
            hasher.update(key.encode())
        return cls(store, home.path / "verify" / f"bytes-{hasher.hexdigest()[:32]}.jsonl")

    def __enter__(self) -> "Checked":
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
        """Remember that an entry is right."""
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

    def _stamp(self, key: EntryKey) -> Stamp | None:
        folder = self._store.path / FRAMES / group_name(key) / key.hex
        stamp: Stamp = []
        try:
            for name in (METADATA_NAME, CHUNK_NAME):
                found = os.stat(folder / name, follow_symlinks=False)  # noqa: PTH116
                stamp += [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        except OSError:
            return None
        return stamp
