"""An SQLite file that may be lost: corrupt, it starts anew; unwritable, it is silently off."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Self, TypeVar

from cache.base.errors import StoreError
from cache.base.files import PRIVATE_FILE

BUSY_TIMEOUT_S = 10.0

Result = TypeVar("Result")


class DisposableDatabase:
    """One such file; threads and processes may share it. ``close`` it, or use ``with``."""

    def __init__(self, path: Path, schema: str) -> None:
        """Nothing is opened until it is asked."""
        self.path, self._schema = path, schema
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._off = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        with self._lock:
            self._disconnect()

    def prepare_folder(self) -> None:
        """Make or check the folder of the file before it is opened. May raise ``OSError``."""

    def work(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Work on the file; start it anew when it is corrupt, give up when the disk refuses."""
        with self._lock:
            for _ in range(2):
                if self._off:
                    return None
                try:
                    return work(self._connect())
                except sqlite3.OperationalError as error:
                    # Locked for longer than the timeout is no reason to give up for good.
                    self._off = "locked" not in str(error)
                    self._disconnect()
                    return None
                except (sqlite3.DatabaseError, TypeError, ValueError):
                    self._start_anew()
                except (OSError, StoreError):
                    self._off = True
            self._off = True
            return None

    def erase(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Work on the file so that what is deleted can be read nowhere in it; no file is made for it."""

        def overwrite(connection: sqlite3.Connection) -> Result:
            connection.execute("PRAGMA secure_delete = ON")
            with connection:
                found = work(connection)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return found

        return self.work(overwrite) if self.path.exists() else None

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self.prepare_folder()
            # SQLite gives its journal files the mode of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE))
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(self._schema)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error), closing(connection):
                pass

    def _start_anew(self) -> None:
        self._disconnect()
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()
