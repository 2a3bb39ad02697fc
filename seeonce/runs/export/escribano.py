"""What a run's answers change in Escribano's database, decided row by row before anything is written."""

import json
import re
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cache.base.errors import InputError
from cache.base.text import printable
from seeonce.runs.presets import ACTIVITIES
from seeonce.runs.run import Result
from sources.escribano_db import FRAME, OBSERVATION, Shape, rows

DESCRIPTION, RAW = "vlm_description", "vlm_raw_response"
COLUMNS = (DESCRIPTION, "activity_type", "apps", "topics", RAW)
STATS = "vlm_stats"

# Where it found no answer, Escribano writes one of these in its place.
_NO_DESCRIPTION = re.compile(r"Failed to parse Frame \d+|No description|Parse error")
_CLAIMED = timedelta(minutes=10)  # how long a frame stays with the process that describes it
_ROW = re.compile(rf"[#&](?P<kind>{OBSERVATION}|{FRAME})=(?P<id>[^#&/]+)")


@dataclass(frozen=True, slots=True)
class RowChange:
    """The columns of one observation that get another value: name, what is there, what takes its place.

    ``frame`` is the run's index, ``of_frame`` the id of the recorder's frame that it is about. ``is_new``
    tells that the observation is not there yet.
    """

    id: bytes
    frame: int
    columns: tuple[tuple[str, object, str | None], ...]
    of_frame: bytes | None = None
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export does.

    ``num_same`` rows say it already, ``num_kept`` have another description and keep it. ``problems`` are
    answers that reach no row, one line each. ``odd_activities`` are none of Escribano's words.
    ``later_steps`` say what of Escribano's is to run again, and how. ``backup`` is the database as it was
    before, ``None`` when nothing was written; ``copies`` are all that lie beside it.
    """

    changes: tuple[RowChange, ...]
    num_same: int
    num_kept: int
    missing_columns: tuple[str, ...]
    problems: tuple[str, ...]
    odd_activities: tuple[str, ...] = ()
    later_steps: tuple[str, ...] = ()
    backup: Path | None = None
    copies: tuple[Path, ...] = ()

    @property
    def num_inserted(self) -> int:
        """How many observations are made."""
        return sum(change.is_new for change in self.changes)


def plan_rows(
    connection: sqlite3.Connection,
    answers: Sequence[Result],
    recording: str | None,
    *,
    overwrite: bool,
    model: str = "",
) -> ExportPlan:
    """Decide what answers change in the visual observations of a recording.

    ``recording`` is the id of its row; None for a day of the recorder, whose frames get an observation where
    they have none. An observation that has a description keeps all of its values, unless ``overwrite``.

    Raises:
        InputError: the database has no visual observations to write to.
    """
    shape = Shape(connection)
    if not shape.has("observations", "id", "recording_id", "type", DESCRIPTION):
        raise InputError("it has no table observations with the columns that are to be written")
    columns = tuple(column for column in (*COLUMNS, STATS) if shape.has("observations", column))
    changes: list[RowChange] = []
    problems: list[str] = []
    num_same = num_kept = 0
    for answer in answers:
        try:
            wanted = dict(_wanted(answer, model))
            there = rows_of(connection, shape, columns, recording, answer)
            if not there:
                changes.append(_insertion(connection, shape, columns, answer, wanted))
            for row in there:
                change = _change(row, columns, answer, wanted, overwrite=overwrite)
                if not change.columns:
                    num_same += 1
                elif is_description(row[1]) and not overwrite:
                    num_kept += 1
                else:
                    changes.append(change)
        except InputError as error:
            problems.append(f"frame {answer.frame}: {error}")
    missing = tuple(column for column in COLUMNS if column not in columns)
    odd = {new for change in changes for name, _, new in change.columns if name == "activity_type" and new}
    return ExportPlan(
        tuple(changes),
        num_same,
        num_kept,
        missing,
        tuple(problems),
        tuple(sorted(odd - set(ACTIVITIES))),
    )


def is_description(text: object) -> bool:
    """Tell whether a row is described: not with the words that Escribano has for no answer."""
    return isinstance(text, str) and bool(text.strip()) and _NO_DESCRIPTION.match(text) is None


def rows_of(
    connection: sqlite3.Connection,
    shape: Shape,
    columns: Sequence[str],
    recording: str | None,
    answer: Result,
) -> list[tuple[object, ...]]:
    """Return the visual observations that an answer is about: id, then ``columns``.

    A frame of the recorder may have none.

    Raises:
        InputError: the observation is gone, or the answer is about no row of the database.
    """
    kind, id_ = _place_of(answer)
    query = f"SELECT id, {', '.join(columns)} FROM observations WHERE type = 'visual' AND id IS NOT NULL AND "  # noqa: S608
    if kind == FRAME:
        linked = shape.has("observations", "frame_id")
        return list(rows(connection, f"{query} frame_id = CAST(? AS TEXT)", (id_,))) if linked else []
    place = (os_bytes(recording),) if recording is not None else ()
    of_recording = " AND recording_id = CAST(? AS TEXT)" if recording is not None else ""
    found = list(rows(connection, f"{query} id = CAST(? AS TEXT){of_recording}", (id_, *place)))
    if not found:
        raise InputError(f"no visual observation {_shown(id_)}: it is no longer there")
    return found


def _place_of(answer: Result) -> tuple[str, bytes]:
    """Return the kind and the id of the row that an answer's frame came from."""
    match = _ROW.search(answer.source, answer.source.rfind("#"))
    if match is None or match.end() != len(answer.source):
        raise InputError(
            "its source names no row of the database: have Escribano process the recording, which seeonce "
            "bridge can answer, or encode it again once there are some"
        )
    if answer.error is not None:
        raise InputError(f"there is no answer ({answer.error})")
    return match["kind"], unquote_to_bytes(match["id"])


def _insertion(
    connection: sqlite3.Connection,
    shape: Shape,
    columns: Sequence[str],
    answer: Result,
    wanted: Mapping[str, str | None],
) -> RowChange:
    """Make the observation of a frame of the recorder that has none, as Escribano would have made it."""
    _, id_ = _place_of(answer)
    if DESCRIPTION not in wanted:
        raise InputError(
            "the answer is no description line, so no observation is made of it: describe --preset escribano"
        )
    if not shape.has("observations", "frame_id") or not shape.has("frames", "id", "timestamp", "image_path"):
        raise InputError("this version of Escribano keeps no observations of single frames")
    lock = ", ".join(
        name if shape.has("frames", name) else "NULL"
        for name in ("processing_lock_id", "processing_started_at")
    )
    found = list(rows(connection, f"SELECT {lock} FROM frames WHERE id = CAST(? AS TEXT)", (id_,)))  # noqa: S608
    if not found:
        raise InputError(f"no frame {_shown(id_)}: it is no longer there")
    if found[0][0] is not None and _is_recent(found[0][1]):
        raise InputError(f"Escribano describes frame {_shown(id_)} right now: export again in ten minutes")
    made = tuple((name, None, wanted[name]) for name in columns if name in wanted)
    return RowChange(str(uuid.uuid4()).encode(), answer.frame, made, id_, is_new=True)


def _is_recent(moment: object) -> bool:
    try:
        since = datetime.fromisoformat(str(moment))
    except ValueError:
        return False
    return datetime.now(UTC) - (since if since.tzinfo else since.replace(tzinfo=UTC)) < _CLAIMED


def _change(
    row: tuple[object, ...],
    columns: Sequence[str],
    answer: Result,
    wanted: Mapping[str, str | None],
    *,
    overwrite: bool,
) -> RowChange:
    id_, *values = row
    wanted = dict(wanted)
    there = dict(zip(columns, values, strict=True))[DESCRIPTION]
    replaces = overwrite or not is_description(there)
    if replaces and RAW not in wanted and there and there != wanted[DESCRIPTION]:
        wanted[RAW] = None  # the raw text of a description that is replaced
    different = tuple(
        (name, old, wanted[name])
        for name, old in zip(columns, values, strict=True)
        if name in wanted and old != wanted[name] and not (name == RAW and old and not replaces)
    )
    if all(name == STATS for name, _, _ in different):  # what it cost changes with each asking
        different = ()
    kind, place = _place_of(answer)
    return RowChange(os_bytes(str(id_)), answer.frame, different, place if kind == FRAME else None)


def _wanted(answer: Result, model: str) -> Iterator[tuple[str, str | None]]:
    """Give the values that an answer has for columns: its fields, or its text where it has none."""
    said = answer.description
    if said is None:
        yield RAW, _storable(answer.text)
        return
    yield DESCRIPTION, _storable(said.description)
    yield "activity_type", _storable(said.activity)
    yield "apps", json.dumps([_storable(app) for app in said.apps], ensure_ascii=False)
    yield "topics", json.dumps([_storable(topic) for topic in said.topics], ensure_ascii=False)
    yield STATS, _stats(answer, model)


def _stats(answer: Result, model: str) -> str:
    """Return what a request cost, in Escribano's fields; 0, as there, is what was not measured."""
    return json.dumps(
        {
            "model": _storable(model),
            "prompt_tokens": answer.usage.prompt_tokens,
            "generation_tokens": answer.usage.completion_tokens,
            "prompt_tps": 0,
            "generation_tps": 0,
            "inference_ms": 0,
            "peak_memory_gb": 0,
            "batch_size": len(answer.group) or 1,
        },
        ensure_ascii=False,
    )


def _storable(text: str) -> str:
    """Return text that UTF-8 can hold; half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shown(id_: bytes) -> str:
    return printable(id_.decode("utf-8", "replace"))[:80]


def os_bytes(text: str) -> bytes:
    """Return the bytes of an id as they stand in the database."""
    return text.encode("utf-8", "surrogateescape")
