"""Descriptions back into Escribano's database: the one place that writes to another program's data.

Owns the order: take the write lock, look what is there, copy the database beside itself, write, commit.
All rows or none; nothing but the columns of ``seeonce.runs.export_plan``. Other programs may go on writing.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cache.errors import InputError, StoreError
from cache.home import Home
from cache.manifest import list_manifests
from seeonce.runs.export_plan import ExportPlan, RowChange, plan_rows
from seeonce.runs.run import Result
from sources.escribano import KIND, split_place
from sources.escribano_db import reading, words
from sources.escribano_rows import RECORDING
from sources.recording import printable

WRITE_TIMEOUT_S = 30.0
_PAGES_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Target:
    """The recording in a database that a run is about; ``recording`` is None for a day."""

    database: Path
    recording: str | None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and where the database as it was before lies; None when nothing was written."""

    plan: ExportPlan
    database: Path
    backup: Path | None


def target_of(home: Home, recording_id: str) -> Target:
    """Return where a recording's rows are.

    Raises:
        InputError: it is not known, or not from Escribano.
    """
    infos = [ref.recording for ref in list_manifests(home) if ref.recording.id == recording_id]
    if not infos:
        raise InputError(f"{recording_id} is not encoded any more, so its database is not known")
    if infos[0].kind != KIND:
        raise InputError(
            f"{recording_id} comes from a {infos[0].kind}, not from Escribano: use --to csv or --to parquet"
        )
    place = split_place(infos[0].path)
    return Target(place.database, place.id if place.kind == RECORDING else None)


def preview(target: Target, answers: Sequence[Result], *, overwrite: bool) -> ExportPlan:
    """Return what an export would change. Reads only.

    Raises:
        InputError: the database cannot be read, or is not Escribano's.
    """
    with reading(target.database) as connection, _about(target.database):
        return plan_rows(connection, answers, target.recording, overwrite=overwrite)


def export(target: Target, answers: Sequence[Result], *, overwrite: bool) -> Exported:
    """Write descriptions into the visual observations of a recording, all in one transaction.

    Raises:
        InputError: the database cannot be read, is locked, or is not Escribano's; nothing was written.
        StoreError: the copy cannot be made, or the disk refuses; nothing was written.
    """
    with _writing(target.database) as connection, _about(target.database):
        plan = plan_rows(connection, answers, target.recording, overwrite=overwrite)
        backup = _back_up(target.database) if plan.changes else None
        for change in plan.changes:
            _write(connection, change)
        connection.execute("COMMIT" if plan.changes else "ROLLBACK")
    return Exported(plan, target.database, backup)


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
    if not database.is_file():
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


def _write(connection: sqlite3.Connection, change: RowChange) -> None:
    columns = ", ".join(f"{column.name} = ?" for column in change.columns)
    values = [column.new for column in change.columns]
    query = f"UPDATE observations SET {columns} WHERE id = CAST(? AS TEXT) AND type = 'visual'"  # noqa: S608
    written = connection.execute(query, (*values, change.id)).rowcount
    if written != 1:
        raise sqlite3.IntegrityError(f"an update of one row reached {written}")


def _back_up(database: Path) -> Path:
    """Copy the database as it is committed now, WAL and all, beside itself; durable before it is named."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    backup = database.with_name(f"{database.name}.before-seeonce-{stamp}")
    partial = backup.with_name(f".{backup.name}.{os.getpid()}.part")
    try:
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
        number = 2
        while backup.exists():  # a second export within one second
            backup = backup.with_name(f"{database.name}.before-seeonce-{stamp}-{number}")
            number += 1
        partial.rename(backup)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            partial.unlink()
        raise StoreError(
            f"{printable(database)}: no copy of it can be made beside it ({error}); nothing was written: "
            "free space there, or check its folder's permissions"
        ) from error
    return backup
