"""Descriptions back into Escribano's database: the one place that writes to another program's data.

All rows or none; nothing but the columns that answers have. Other programs may go on writing.
"""

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from cache.base.errors import InputError, disk_error
from cache.base.home import Home
from cache.base.text import printable
from cache.manifest import list_manifests
from infer.request import Usage
from seeonce.runs.find import RECORDED
from seeonce.runs.parse import Description
from seeonce.runs.run import Result, Run, RunInfo
from sources.escribano import KIND, split_place
from sources.escribano_db import RECORDING, Shape, reading, rows, words

DESCRIPTION, RAW = "vlm_description", "vlm_raw_response"
COLUMNS = (DESCRIPTION, "activity_type", "apps", "topics", RAW)

_ROW = re.compile(r"[#&](?P<kind>observation|frame)=(?P<id>[^#&/]+)")


@dataclass(frozen=True, slots=True)
class RowChange:
    """The columns of one observation that get another value: name, what is there, what takes its place.

    ``frame`` is the run's index.
    """

    id: bytes
    frame: int
    columns: tuple[tuple[str, object, str | None], ...]


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export does.

    ``num_same`` rows say it already, ``num_kept`` have another description and keep it. ``problems`` are
    answers that reach no row, one line each. ``backup`` is the database as it was before; ``None`` when
    nothing was written.
    """

    changes: tuple[RowChange, ...]
    num_same: int
    num_kept: int
    missing_columns: tuple[str, ...]
    problems: tuple[str, ...]
    backup: Path | None = None


def plan_rows(
    connection: sqlite3.Connection, answers: Sequence[Result], recording: str | None, *, overwrite: bool
) -> ExportPlan:
    """Decide what answers change in the visual observations of a recording.

    ``recording`` is the id of its row; None for a day of the recorder. An observation that has a
    description keeps all of its values, unless ``overwrite``.

    Raises:
        InputError: the database has no visual observations to write to.
    """
    shape = Shape(connection)
    if not shape.has("observations", "id", "recording_id", "type", DESCRIPTION):
        raise InputError("it has no table observations with the columns that are to be written")
    columns = tuple(column for column in COLUMNS if shape.has("observations", column))
    changes: list[RowChange] = []
    problems: list[str] = []
    num_same = num_kept = 0
    for answer in answers:
        try:
            for row in rows_of(connection, shape, columns, recording, answer):
                change = _change(row, columns, answer, overwrite=overwrite)
                if not change.columns:
                    num_same += 1
                elif row[1] and not overwrite:
                    num_kept += 1
                else:
                    changes.append(change)
        except InputError as error:
            problems.append(f"frame {answer.frame}: {error}")
    missing = tuple(column for column in COLUMNS if column not in columns)
    return ExportPlan(tuple(changes), num_same, num_kept, missing, tuple(problems))


def rows_of(
    connection: sqlite3.Connection,
    shape: Shape,
    columns: Sequence[str],
    recording: str | None,
    answer: Result,
) -> list[tuple[object, ...]]:
    """Return the visual observations that an answer is about: id, then ``columns``."""
    match = _ROW.search(answer.source, answer.source.rfind("#"))
    if match is None or match.end() != len(answer.source):
        raise InputError("its source names no row of the database: encode it again once there are some")
    if answer.error is not None:
        raise InputError(f"there is no answer ({answer.error})")
    id_ = unquote_to_bytes(match["id"])
    query = f"SELECT id, {', '.join(columns)} FROM observations WHERE type = 'visual' AND id IS NOT NULL AND "  # noqa: S608
    if match["kind"] == "observation":
        place = (os_bytes(recording),) if recording is not None else ()
        of_recording = " AND recording_id = CAST(? AS TEXT)" if recording is not None else ""
        found = list(rows(connection, f"{query} id = CAST(? AS TEXT){of_recording}", (id_, *place)))
        reason = "it is no longer there"
    else:
        linked = shape.has("observations", "frame_id")
        found = list(rows(connection, f"{query} frame_id = CAST(? AS TEXT)", (id_,))) if linked else []
        reason = "Escribano has not looked at that frame yet, so export again when it has"
    if not found:
        shown = printable(id_.decode("utf-8", "replace"))[:80]
        raise InputError(f"no visual observation of {match['kind']} {shown}: {reason}")
    return found


def _change(row: tuple[object, ...], columns: Sequence[str], answer: Result, *, overwrite: bool) -> RowChange:
    id_, *values = row
    wanted = dict(_wanted(answer))
    there = dict(zip(columns, values, strict=True))[DESCRIPTION]
    if overwrite and RAW not in wanted and there and there != wanted[DESCRIPTION]:
        wanted[RAW] = None  # the raw text of a description that is replaced
    different = tuple(
        (name, old, wanted[name])
        for name, old in zip(columns, values, strict=True)
        if name in wanted and old != wanted[name] and not (name == RAW and old and not overwrite)
    )
    return RowChange(os_bytes(str(id_)), answer.frame, different)


def _wanted(answer: Result) -> Iterator[tuple[str, str | None]]:
    """Give the values that an answer has for columns: its fields, or its text where it has none."""
    said = answer.description
    if said is None:
        yield RAW, _storable(answer.text)
        return
    yield DESCRIPTION, _storable(said.description)
    yield "activity_type", _storable(said.activity)
    yield "apps", json.dumps([_storable(app) for app in said.apps], ensure_ascii=False)
    yield "topics", json.dumps([_storable(topic) for topic in said.topics], ensure_ascii=False)


def _storable(text: str) -> str:
    """Return text that UTF-8 can hold; half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def os_bytes(text: str) -> bytes:
    """Return the bytes of an id as they stand in the database."""
    return text.encode("utf-8", "surrogateescape")


WRITE_TIMEOUT_S = 30.0
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
) -> ExportPlan:
    """Write descriptions into the visual observations of a recording, all in one transaction.

    ``dry_run`` reads only, and returns what would change.

    Raises:
        InputError: the database cannot be read, is locked, or is not Escribano's; nothing was written.
        StoreError: the copy cannot be made, or the disk refuses; nothing was written.
    """
    if dry_run:
        with reading(database) as connection, _about(database):
            return plan_rows(connection, answers, recording, overwrite=overwrite)
    with _writing(database) as connection, _about(database):
        plan = plan_rows(connection, answers, recording, overwrite=overwrite)
        backup = _back_up(database) if plan.changes else None
        for change in plan.changes:
            _write(connection, change)
        connection.execute("COMMIT" if plan.changes else "ROLLBACK")
    return replace(plan, backup=backup)


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


def _write(connection: sqlite3.Connection, change: RowChange) -> None:
    columns = ", ".join(f"{name} = ?" for name, _, _ in change.columns)
    values = [new for _, _, new in change.columns]
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
        what = f"{printable(database)}: nothing was written, since no copy of it can be made beside it"
        raise disk_error(database.parent, what, error) from error
    return backup


_COLUMNS = (DESCRIPTION, "activity_type", "apps", "topics")


def recorded_run(home: Home, answers: Sequence[Result]) -> Run:
    """Return what Escribano says of the frames that ``answers`` are about, as if a run had said it.

    Frames of which it says nothing are left out.

    Raises:
        InputError: the recording is not from Escribano, its database cannot be read or says nothing of them.
    """
    recordings = list(dict.fromkeys(answer.recording for answer in answers))
    found = [
        said
        for recording in recordings
        for said in _recorded(home, recording, [each for each in answers if each.recording == recording])
    ]
    if not found:
        raise InputError(f"Nothing was recorded about the frames of {', '.join(recordings) or 'this run'}.")
    info = RunInfo(RECORDED, found[0].recording, name=RECORDED, model="Escribano", prompts=(RECORDED,))
    return Run(info, tuple(found), "done")


def _recorded(home: Home, recording: str, answers: Sequence[Result]) -> Iterator[Result]:
    database, row_id = target_of(home, recording, "name another run instead of recorded")
    with reading(database) as connection:
        shape = Shape(connection)
        if not shape.has("observations", "id", "recording_id", "type", DESCRIPTION):
            raise InputError(f"{database}: no table observations with descriptions")
        columns = [column for column in _COLUMNS if shape.has("observations", column)]
        for answer in {answer.frame: answer for answer in answers}.values():
            try:
                rows = rows_of(connection, shape, columns, row_id, replace(answer, error=None))
            except InputError:  # this frame has no row: nothing was said of it
                continue
            said = _said(dict(zip(columns, rows[0][1:], strict=True)))
            if said is not None:
                yield replace(
                    answer,
                    prompt_id=RECORDED,
                    prompt=RECORDED,
                    text=said.description,
                    finish_reason="stop",
                    usage=Usage(0, 0),
                    parsed=said,
                    error=None,
                    group=(),
                    logprobs=None,
                )


def _said(row: dict[str, object]) -> Description | None:
    text = row.get(DESCRIPTION)
    if not isinstance(text, str) or not text.strip():
        return None
    activity = row.get("activity_type")
    return Description(
        text,
        activity if isinstance(activity, str) else "",
        _items(row.get("apps")),
        _items(row.get("topics")),
    )


def _items(value: object) -> tuple[str, ...]:
    """Read a list that is kept as JSON text."""
    try:
        items = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return ()
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()
