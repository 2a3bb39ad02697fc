"""What an export to Escribano changes: which columns of which rows, decided before anything is written.

Owns the way from an answer to its rows, and what is left alone. Reads rows through a connection that it
is given; writes nothing (``seeonce.runs.export_escribano``).
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cache.errors import InputError
from seeonce.runs.run import Result
from sources.escribano_db import Shape, rows
from sources.recording import printable

DESCRIPTION, RAW = "vlm_description", "vlm_raw_response"
COLUMNS = (DESCRIPTION, "activity_type", "apps", "topics", RAW)

_ROW = re.compile(r"[#&](?P<kind>observation|frame)=(?P<id>[^#&/]+)")


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """One value: what is there, and what takes its place."""

    name: str
    old: object
    new: str | None


@dataclass(frozen=True, slots=True)
class RowChange:
    """The columns of one observation that get another value. ``frame`` is the run's index."""

    id: bytes
    frame: int
    columns: tuple[ColumnChange, ...]


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export would do.

    ``num_same`` rows say it already, ``num_kept`` have another description and keep it. ``problems`` are
    answers that reach no row, one line each.
    """

    changes: tuple[RowChange, ...]
    num_same: int
    num_kept: int
    missing_columns: tuple[str, ...]
    problems: tuple[str, ...]


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
        ColumnChange(name, old, wanted[name])
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
