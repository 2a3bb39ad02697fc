"""Escribano's database, read only: opening it beside another process, its versions, its rows."""

import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from stat import S_ISREG
from urllib.parse import quote

from cache.base.errors import InputError
from cache.base.text import printable
from sources.recording import iso_utc

BUSY_TIMEOUT_S = 5.0

# An early plan of Escribano's called the image column source_path.
IMAGE_COLUMNS = ("image_path", "source_path")
MAX_LENGTH_S = 30 * 86_400.0  # nothing is recorded for longer in one go
_NO_RECORDING = "__recorder__"  # named by the recorder's rows where one is required: their days are listed
_SLACK = 1.5  # of a recording's length: durations are rounded, videos are cut
_QUARTER_S = 900  # every time zone in use is a multiple of a quarter of an hour from UTC
_NUMBER = "typeof({0}.timestamp) IN ('integer', 'real')"


class Shape:
    """Which tables and columns a database has; read from it, never assumed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Look at the tables that Escribano's versions have had."""
        self._columns = {
            table: {str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")}
            for table in ("recordings", "observations", "frames", "topic_blocks", "subjects")
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


RECORDING, DAY = "recording", "day"
OBSERVATION, FRAME = "observation", "frame"

MIN_UNIX_S, MAX_UNIX_S = 315_532_800.0, 4_102_444_800.0  # 1980 to 2100; milliseconds lie beyond


@dataclass(frozen=True, slots=True)
class Group:
    """One recording in the database, without its rows: a row of ``recordings``, or a day of frames.

    ``images`` are two of its image paths, as they stand there. ``started_s`` is in POSIX seconds.
    """

    kind: str
    id: str
    started_s: float | None
    length_s: float | None
    num_rows: int
    images: tuple[object, ...]
    video: object


@dataclass(frozen=True, slots=True)
class Row:
    """One visual observation or one frame of the recorder. ``problem`` says why its time is no time."""

    kind: str
    id: str
    timestamp_s: float
    image: object
    perceptual_hash: int | None
    problem: str | None


def list_groups(connection: sqlite3.Connection) -> tuple[list[Group], int]:
    """List recordings and days, one query for each table.

    Raises:
        InputError: the database is not Escribano's.
    """
    shape = Shape(connection)
    if not shape.has("recordings", "id") and not shape.has("frames", "id", "timestamp"):
        raise InputError(
            "has no table recordings and no table frames: not Escribano's, or copied without its -wal file"
        )
    days, num_untimed = _days(connection, shape)
    return [*_recordings(connection, shape), *days], num_untimed


def find_group(connection: sqlite3.Connection, kind: str, id_: str) -> Group:
    """Return one recording or day without counting its rows; one that is not there is empty.

    Raises:
        ValueError: no such day.
    """
    shape = Shape(connection)
    if kind == DAY:
        bounds = day_bounds(id_)
        first = "SELECT MIN(timestamp) FROM frames WHERE timestamp >= ? AND timestamp < ?"
        timed = shape.has("frames", "id", "timestamp")
        started = next(rows(connection, first, bounds), (None,))[0] if timed else None
        return Group(DAY, id_, None if started is None else _float(started), None, 0, (), None)
    if shape.has("recordings", "id"):
        query = f"SELECT {_columns(shape)} FROM recordings WHERE id = CAST(? AS TEXT)"  # noqa: S608
        for _, captured_at, duration, video in rows(connection, query, (_bytes(id_),)):
            length_s = _seconds(duration, MAX_LENGTH_S)
            return Group(RECORDING, id_, _moment(captured_at), length_s, 0, (), video)
    return Group(RECORDING, id_, None, None, 0, (), None)


def _columns(shape: Shape) -> str:
    names = ("id", "captured_at", "duration", "video_path")
    return ", ".join(shape.column("recordings", name) for name in names)


def list_rows(connection: sqlite3.Connection, group: Group) -> list[Row]:
    """List the frames of a recording or a day, in order of time, equal times as they were written."""
    shape = Shape(connection)
    if group.kind == DAY and not shape.has("frames", "id", "timestamp"):
        return []
    if group.kind == DAY:
        start_s, end_s = day_bounds(group.id)
        columns = (
            f"id, timestamp, {shape.column('frames', *IMAGE_COLUMNS)}, {shape.column('frames', 'phash')}"
        )
        query = f"SELECT {columns} FROM frames WHERE timestamp >= ? AND timestamp < ?"  # noqa: S608
        order = f"timestamp, {shape.column('frames', 'display_id')}, id"
        found = rows(connection, f"{query} AND {_NUMBER.format('frames')} ORDER BY {order}", (start_s, end_s))
        listed = list(found)
        first_s = _float(listed[0][1]) if listed else start_s
        return [_frame(row, first_s) for row in listed]
    if not shape.has("observations", "id", "recording_id", "type", "timestamp"):
        return []
    linked = shape.has("observations", "frame_id") and shape.has("frames", "id", "phash")
    phash, join = ("frames.phash", "LEFT JOIN frames ON frames.id = frame_id") if linked else ("NULL", "")
    image = shape.column("observations", *IMAGE_COLUMNS)
    query = (
        f"SELECT observations.id, observations.timestamp, {image}, {phash} FROM observations {join} "  # noqa: S608
        "WHERE recording_id = CAST(? AS TEXT) AND type = 'visual' "
        "ORDER BY observations.timestamp, observations.rowid"
    )
    limit_s = group.length_s * _SLACK + 60 if group.length_s else MAX_LENGTH_S
    return [
        _observation(row, min(limit_s, MAX_LENGTH_S)) for row in rows(connection, query, (_bytes(group.id),))
    ]


def day_bounds(day: str) -> tuple[float, float]:
    """Return when a local day begins and ends, in POSIX seconds.

    Raises:
        ValueError: no such day.
    """
    first = date.fromisoformat(day)
    start, end = (datetime(d.year, d.month, d.day).astimezone() for d in (first, first + timedelta(1)))
    return start.timestamp(), end.timestamp()


def _recordings(connection: sqlite3.Connection, shape: Shape) -> list[Group]:
    if not shape.has("recordings", "id"):
        return []
    seen = _observed(connection, shape)
    groups = []
    for id_, captured_at, duration, video in rows(connection, f"SELECT {_columns(shape)} FROM recordings"):  # noqa: S608
        num_rows, last_s, images = seen.pop(str(id_), (0, None, ()))
        length_s = _seconds(duration, MAX_LENGTH_S) or _seconds(last_s, MAX_LENGTH_S)
        groups.append(Group(RECORDING, str(id_), _moment(captured_at), length_s, num_rows, images, video))
    for orphan, (num_rows, last_s, images) in seen.items():  # their row of recordings is gone
        groups.append(Group(RECORDING, orphan, None, _seconds(last_s, MAX_LENGTH_S), num_rows, images, None))
    return [group for group in groups if group.id != _NO_RECORDING]


def _observed(
    connection: sqlite3.Connection, shape: Shape
) -> dict[str, tuple[int, object, tuple[object, ...]]]:
    """Count the visual observations of each recording, with the last time and two of the images."""
    if not shape.has("observations", "id", "recording_id", "type", "timestamp"):
        return {}
    image, number = shape.column("observations", *IMAGE_COLUMNS), _NUMBER.format("observations")
    query = (
        f"SELECT recording_id, COUNT(*), MAX(CASE WHEN {number} THEN timestamp END), "  # noqa: S608
        f"MIN({image}), MAX({image}) "
        "FROM observations WHERE type = 'visual' AND recording_id IS NOT NULL GROUP BY recording_id"
    )
    found = {}
    for id_, count, last_s, *images in rows(connection, query):
        found[str(id_)] = (_integer(count), last_s, tuple(images))
    return found


def _days(connection: sqlite3.Connection, shape: Shape) -> tuple[list[Group], int]:
    """Gather the recorder's frames by local day; count those that have no time. One look at each row."""
    if not shape.has("frames", "id", "timestamp"):
        return [], 0
    image = shape.column("frames", *IMAGE_COLUMNS)
    timed = f"{_NUMBER.format('frames')} AND timestamp BETWEEN ? AND ?"
    query = (
        f"SELECT COUNT(*), MIN(timestamp), MAX(timestamp), MIN({image}), MAX({image}), "  # noqa: S608
        f"CASE WHEN {timed} THEN CAST(timestamp / {_QUARTER_S} AS INTEGER) END AS quarter "
        "FROM frames GROUP BY quarter ORDER BY quarter"
    )
    days: dict[str, Group] = {}
    num_untimed = 0
    for count, first, last, *images, quarter in rows(connection, query, (MIN_UNIX_S, MAX_UNIX_S)):
        if quarter is None:
            num_untimed = _integer(count)
            continue
        start_s, end_s = _float(first), _float(last)
        day = datetime.fromtimestamp(start_s).astimezone().date().isoformat()
        known = days.get(day, Group(DAY, day, start_s, 0.0, 0, tuple(images[:1]), None))
        begun_s = start_s if known.started_s is None else known.started_s
        shown = (*known.images[:1], *images[1:])
        days[day] = Group(DAY, day, begun_s, end_s - begun_s, known.num_rows + _integer(count), shown, None)
    return list(days.values()), num_untimed


def _observation(row: tuple[object, ...], limit_s: float) -> Row:
    id_, timestamp, image, phash = row
    seconds = _seconds(timestamp, limit_s)
    problem = None if seconds is not None else f"its timestamp {_shown(timestamp)} is no time in seconds"
    if problem and isinstance(timestamp, int | float) and timestamp > limit_s:
        problem = f"its timestamp {_shown(timestamp)} lies far beyond the recording's end (milliseconds?)"
    return Row(OBSERVATION, str(id_), seconds or 0.0, image, _hash(phash), problem)


def _frame(row: tuple[object, ...], first_s: float) -> Row:
    id_, timestamp, image, phash = row
    return Row(FRAME, str(id_), _float(timestamp) - first_s, image, _hash(phash), None)


def _seconds(value: object, limit_s: float) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= limit_s:
        return float(value)
    return None


def _moment(value: object) -> float | None:
    """Read ISO 8601, UTC unless it says otherwise; None for anything else."""
    try:
        moment = datetime.fromisoformat(str(value))
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if MIN_UNIX_S <= seconds <= MAX_UNIX_S else None


def captured_at(group: Group) -> str:
    """Return when a recording began, ISO 8601 in UTC, or an empty text."""
    return "" if group.started_s is None else iso_utc(group.started_s)


def _hash(value: object) -> int | None:
    """Read 64 bits as hexadecimal digits, without leading zeros as Escribano's recorder writes them."""
    text = value if isinstance(value, str) else ""
    try:
        return int(text, 16) if 0 < len(text) <= 16 and text.isalnum() else None
    except ValueError:
        return None


def _shown(value: object) -> str:
    return printable(repr(value))[:60]


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
