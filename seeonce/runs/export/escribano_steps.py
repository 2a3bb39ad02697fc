"""Which of Escribano's later steps are to run once descriptions are written, and with which commands."""

import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache.base.text import counted, printable
from seeonce.runs.export.escribano import RAW, RowChange, os_bytes
from sources.escribano_db import Shape, rows


def later_steps(
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
