"""Escribano's database, read only: opening it beside another process, and the shape that it has.

Owns the connection, the waiting, what an unreadable database is called, and the columns of versions.
Does not own what rows mean (``escribano_rows``, ``escribano``). Nothing here writes.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from cache.errors import InputError
from sources.recording import printable

BUSY_TIMEOUT_S = 5.0

# An early plan of Escribano's called the image column source_path.
IMAGE_COLUMNS = ("image_path", "source_path")


class Shape:
    """Which tables and columns a database has; read from it, never assumed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Look at the tables that Escribano's versions have had."""
        self._columns = {
            table: {str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")}
            for table in ("recordings", "observations", "frames")
        }

    def has(self, table: str, *columns: str) -> bool:
        """Tell whether a table has all these columns."""
        return bool(self._columns[table]) and self._columns[table].issuperset(columns)

    def column(self, table: str, *names: str) -> str:
        """Return the first of these columns that the table has, qualified; ``NULL`` when it has none."""
        return next((f"{table}.{name}" for name in names if name in self._columns[table]), "NULL")


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading, in one transaction: all queries see one state of it.

    Text comes as ``os.fsdecode`` gives it, so that any bytes can be read.

    Raises:
        InputError: it is missing, no database, locked for longer than the timeout, or damaged.
    """
    _require_file(database)
    try:
        with _connected(database) as connection:
            connection.text_factory = os.fsdecode
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise InputError(words(database, error, BUSY_TIMEOUT_S)) from error
    except OSError as error:  # its WAL cannot be read, or there is no room for a copy of it
        raise InputError(f"{printable(database)}: cannot be read ({error.strerror})") from error


def _require_file(database: Path) -> None:
    try:
        if not S_ISREG(database.stat().st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{printable(database)}: not a file; ESCRIBANO_DB names Escribano's database")
    except OSError as error:
        raise InputError(f"{printable(database)}: cannot be read ({error.strerror})") from error


@contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    """Connect; where SQLite cannot make the file that readers of a WAL share, go around it."""
    with closing(_connect(database, "mode=ro")) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_schema")
        except sqlite3.OperationalError as error:
            if not _lacks_shared_memory(database, error):
                raise
        else:
            yield connection
            return
    with _unshared(database) as (copy, mode), closing(_connect(copy, mode)) as connection:
        yield connection


def _connect(database: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(database))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _lacks_shared_memory(database: Path, error: sqlite3.OperationalError) -> bool:
    """Tell whether reading failed because a read-only folder takes no ``-shm`` file."""
    cannot = ("unable to open database file", "attempt to write a readonly database", "disk I/O error")
    return not os.access(database.parent, os.W_OK) and any(words in str(error) for words in cannot)


@contextmanager
def _unshared(database: Path) -> Iterator[tuple[Path, str]]:
    """Give a way to read a database in a folder that cannot be written.

    With nothing in its WAL the file itself is whole. Otherwise database and WAL are copied to a
    private folder, which lasts as long as the reading.
    """
    wal = database.with_name(f"{database.name}-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        yield database, "mode=ro&immutable=1"
        return
    with tempfile.TemporaryDirectory(prefix="seeonce-") as folder:
        for file in (database, wal):
            shutil.copyfile(file, Path(folder) / file.name)
        yield Path(folder) / database.name, "mode=rw"


def words(database: Path, error: sqlite3.Error, timeout_s: float) -> str:
    """Say in one line what is wrong with a database, and what helps."""
    reason, name = str(error), printable(database)
    if "locked" in reason or "busy" in reason:
        return f"{name}: locked by another program for more than {timeout_s:g} s; close it or try again"
    if "not a database" in reason:
        return f"{name}: not a SQLite database; ESCRIBANO_DB names Escribano's"
    return f"{name}: SQLite refuses ({printable(reason)}); check it with sqlite3, PRAGMA integrity_check"


def rows(
    connection: sqlite3.Connection, query: str, values: Sequence[object] = ()
) -> Iterator[tuple[object, ...]]:
    """Run a query, one row at a time."""
    with closing(connection.execute(query, tuple(values))) as cursor:
        yield from cursor


def is_database_name(path: Path) -> bool:
    """Tell by its name whether a file is a SQLite database."""
    with suppress(OSError):
        return path.suffix.lower() in (".db", ".sqlite", ".sqlite3") and path.is_file()
    return False
