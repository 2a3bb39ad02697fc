"""Writing to Escribano's database: a copy first, then all rows or none; and what it is to do afterwards.

Other programs may go on writing.
"""

import os
import re
import shlex
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from cache.base.errors import InputError, disk_error
from cache.base.home import Home
from cache.base.text import counted, printable
from cache.manifest import list_manifests
from seeonce.runs.export.escribano import RAW, ExportPlan, RowChange, os_bytes, plan_rows
from seeonce.runs.run import Result
from sources.escribano import KIND, split_place
from sources.escribano_db import RECORDING, Shape, reading, rows, words

WRITE_TIMEOUT_S = 30.0
COPIES_KEPT = 3
_PAGES_AT_ONCE = 10_000


def target_of(home: Home, recording_id: str, advice: str) -> tuple[Path, str | None]:
    """Return the database of a recording and the id of its row there, ``None`` for a day of the recorder.

    ``advice`` is for a recording that is not from Escribano.

    Raises:
        InputError: it is not known, or not from Escribano.
    """
    infos = [ref.recording for ref in list_manifests(home) if ref.recording.id == recording_id]
    if not infos:
        raise InputError(f"{recording_id} is not encoded any more, so its database is not known")
    if infos[0].kind != KIND:
        raise InputError(f"{recording_id} is no recording of Escribano's (it is a {infos[0].kind}): {advice}")
    place = split_place(infos[0].path)
    return place.database, place.id if place.kind == RECORDING else None


def export(
    database: Path,
    recording: str | None,
    answers: Sequence[Result],
    *,
    overwrite: bool,
    dry_run: bool = False,
    model: str = "",
) -> ExportPlan:
    """Write descriptions into the visual observations of a recording, all in one transaction.

    A frame of the recorder that has no observation gets one. ``dry_run`` reads only, and returns what would
    change. ``model`` is noted as what answered. Of the copies beside the database the newest are kept.

    Raises:
        InputError: the database cannot be read, is locked, or is not Escribano's; nothing was written.
        StoreError: the copy cannot be made, or the disk refuses; nothing was written.
    """
    if dry_run:
        with reading(database) as connection, _about(database):
            plan = plan_rows(connection, answers, recording, overwrite=overwrite, model=model)
            steps = _later_steps(connection, database, recording, plan.changes)
            return replace(plan, later_steps=steps)
    with _writing(database) as connection, _about(database):
        plan = plan_rows(connection, answers, recording, overwrite=overwrite, model=model)
        steps = _later_steps(connection, database, recording, plan.changes)
        backup = _write_all(connection, database, plan.changes) if plan.changes else None
    copies: tuple[Path, ...] = ()
    with suppress(OSError):
        copies = _newest_copies(database) if backup is not None else ()
    return replace(plan, backup=backup, copies=copies, later_steps=steps)


@contextmanager
def _about(database: Path) -> Iterator[None]:
    """Have errors name the database."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{printable(database)}: {error}") from error


@contextmanager
def _writing(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database with its write lock held: what is read then is what is written to."""
    if not os.path.isfile(database):  # noqa: PTH113 (never raises)
        raise InputError(f"{printable(database)}: no such database; nothing was written")
    uri = f"file:{quote(os.fsencode(database))}?mode=rw"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=WRITE_TIMEOUT_S, isolation_level=None)
        ) as connection:
            connection.text_factory = os.fsdecode
            # trusted_schema stays on: Escribano's own triggers keep its full-text index in step.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise InputError(f"{words(database, error, WRITE_TIMEOUT_S)}; nothing was written") from error


def _write_all(connection: sqlite3.Connection, database: Path, changes: Sequence[RowChange]) -> Path:
    """Write and commit all changes, and return the copy of before; one of which nothing came is removed."""
    backup = _back_up(database)
    try:
        for change in changes:
            _write(connection, change)
        connection.execute("COMMIT")
    except Exception:  # no Ctrl-C, which may come right after the commit
        with suppress(OSError):
            backup.unlink()
        raise
    return backup


def _write(connection: sqlite3.Connection, change: RowChange) -> None:
    values = [new for _, _, new in change.columns]
    if change.is_new:
        written = _insert(connection, change, values)
    else:
        columns = ", ".join(f"{name} = ?" for name, _, _ in change.columns)
        query = f"UPDATE observations SET {columns} WHERE id = CAST(? AS TEXT) AND type = 'visual'"  # noqa: S608
        written = connection.execute(query, (*values, change.id)).rowcount
    if written != 1:
        raise sqlite3.IntegrityError(f"a change of one row reached {written}")
    if change.of_frame is not None:
        _mark_analyzed(connection, change.of_frame)


def _insert(connection: sqlite3.Connection, change: RowChange, values: Sequence[object]) -> int:
    """Make an observation of a frame, with its time and its image; the id is ours."""
    names = ", ".join(name for name, _, _ in change.columns)
    now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    query = (
        f"INSERT INTO observations (id, type, frame_id, timestamp, image_path, created_at, {names}) "  # noqa: S608
        f"SELECT CAST(? AS TEXT), 'visual', id, timestamp, image_path, {now}{', ?' * len(values)} "
        "FROM frames WHERE id = CAST(? AS TEXT)"
    )
    return connection.execute(query, (change.id, *values, change.of_frame)).rowcount


def _mark_analyzed(connection: sqlite3.Connection, frame: bytes) -> None:
    """Tell Escribano that a frame is described, and let go of a claim that a process left behind."""
    shape = Shape(connection)
    columns = ("analyzed = 1", "processing_lock_id = NULL")
    there = [column for column in columns if shape.has("frames", column.partition(" ")[0])]
    if there:
        query = f"UPDATE frames SET {', '.join(there)} WHERE id = CAST(? AS TEXT)"  # noqa: S608
        connection.execute(query, (frame,))


def _back_up(database: Path) -> Path:
    """Copy the database as it is committed now, WAL and all, beside itself; durable before it is named."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    backup = database.with_name(f"{database.name}.before-seeonce-{stamp}")
    partial = database.with_name(f".{database.name}.before-seeonce.part")  # we hold the write lock
    try:
        for left in ("", "-journal", "-wal", "-shm"):  # of an export that was killed
            partial.with_name(f"{partial.name}{left}").unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        uri = f"file:{quote(os.fsencode(database))}?mode=ro"
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=WRITE_TIMEOUT_S)) as source,
            closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy, pages=_PAGES_AT_ONCE)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, whole by itself
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        numbers = [number for at, number, _ in _copies(database) if at == stamp]
        if numbers:  # another export within one second
            backup = backup.with_name(f"{backup.name}-{max(numbers) + 1}")
        partial.rename(backup)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            partial.unlink()
        what = f"{printable(database)}: nothing was written, since no copy of it can be made beside it"
        raise disk_error(database.parent, what, error) from error
    return backup


def _newest_copies(database: Path) -> tuple[Path, ...]:
    """Remove all copies but the newest, and return those, the newest first."""
    newest = [path for _, _, path in sorted(_copies(database), reverse=True)]
    for path in newest[COPIES_KEPT:]:
        with suppress(OSError):
            path.unlink()
    return tuple(newest[:COPIES_KEPT])


def _copies(database: Path) -> list[tuple[str, int, Path]]:
    """Return the copies beside a database: when each was made, its number within that second, its path."""
    name = re.compile(re.escape(f"{database.name}.before-seeonce-") + r"(\d{8}-\d{6})(?:-(\d+))?")
    found = ((name.fullmatch(path.name), path) for path in database.parent.iterdir())
    return [(match[1], int(match[2] or 1), path) for match, path in found if match is not None]


def _later_steps(
    connection: sqlite3.Connection, database: Path, recording: str | None, changes: Sequence[RowChange]
) -> tuple[str, ...]:
    """Say which steps of Escribano's are to run after the changes were written, and how."""
    if all(name == RAW for change in changes for name, _, _ in change.columns):
        return ()
    if recording is None:
        return tuple(_steps_of_day(connection, database, changes))
    return tuple(_steps_of_recording(connection, database, recording))


def _steps_of_day(
    connection: sqlite3.Connection, database: Path, changes: Sequence[RowChange]
) -> Iterator[str]:
    known = Shape(connection).has("observations", "tb_id")
    blocks: set[object] = set()
    num_free = 0
    for change in changes:
        query = "SELECT tb_id FROM observations WHERE id = CAST(? AS TEXT)"
        found = [(None,)] if change.is_new else rows(connection, query, (change.id,)) if known else ()
        for (block,) in found:
            blocks |= {block} - {None}
            num_free += block is None
    if num_free:
        yield f"{counted(num_free, 'observation')} of these the recorder segments by itself: nothing to run."
    if blocks:
        named = ", ".join(_quoted(str(block)) for block in sorted(blocks, key=str))
        delete = _sqlite(database, f"DELETE FROM topic_blocks WHERE id IN ({named})")  # noqa: S608 - shown
        yield (
            f"Topic blocks made of what is replaced: {len(blocks)}. The recorder's session aggregation runs "
            f"again once they are gone: {delete}"
        )


def _steps_of_recording(connection: sqlite3.Connection, database: Path, recording: str) -> Iterator[str]:
    shape, id_ = Shape(connection), os_bytes(recording)
    if not shape.has("recordings", "id", "status", "processing_step", "video_path"):
        return
    query = "SELECT video_path FROM recordings WHERE id = CAST(? AS TEXT)"
    video = next((str(path) for (path,) in rows(connection, query, (id_,)) if path), "")
    name = _quoted(recording)
    again = f"npx escribano --file {shlex.quote(printable(video) or 'VIDEO')}"
    query = "SELECT 1 FROM topic_blocks WHERE recording_id = CAST(? AS TEXT) LIMIT 1"
    if shape.has("topic_blocks", "recording_id") and next(rows(connection, query, (id_,)), None):
        tables = [table for table in ("subjects", "topic_blocks") if shape.has(table, "recording_id")]
        statements = [f"DELETE FROM {table} WHERE recording_id = {name}" for table in tables]  # noqa: S608 - shown
        statements.append(
            "UPDATE recordings SET status = 'processing', processing_step = 'context_creation' "  # noqa: S608
            f"WHERE id = {name}"
        )
        yield (
            "Topic blocks were made of what is replaced: segmentation and artifacts are to run again. "
            f"{_sqlite(database, '; '.join(statements))} && {again}"
        )
    else:
        yield f"Segmentation and what follows it are still to run: {again}"
    yield "Without --force, which deletes these observations."


def _sqlite(database: Path, statements: str) -> str:
    return (
        f"sqlite3 {shlex.quote(printable(database))} {shlex.quote(f'PRAGMA foreign_keys = ON; {statements}')}"
    )


def _quoted(text: str) -> str:
    return "'" + printable(text).replace("'", "''") + "'"
