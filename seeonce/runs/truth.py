"""The truth about frames from a CSV file: a column that names the frame, and columns of expected fields.

Owns the file's form. ``frame`` is an index or a file name; ``text`` is a whole answer; ``description``,
``activity``, ``apps`` and ``topics`` are fields of one, lists separated by ";" or ",". An empty field is
not known. With a column ``prompt``, a row is about the prompt of that id or text alone.
"""

import csv
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import InputError
from seeonce.runs.answers import parse_description
from seeonce.runs.compare import Place
from seeonce.runs.score import Expected, as_items
from seeonce.runs.sheet import Column, Row

_FIELDS = ("frame", "prompt", "text", "description", "activity", "apps", "topics")
_WHAT = frozenset(_FIELDS) - {"frame", "prompt"}
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TruthRow:
    """One line of the file."""

    frame: str
    prompt: str
    expected: Expected


def read_truth(path: Path) -> tuple[TruthRow, ...]:
    """Read a CSV file with a heading.

    Raises:
        InputError: it cannot be read, lacks a column, or has one of unknown name.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"--truth {path} is larger than {_MAX_BYTES >> 20} MB: is it a CSV of frames?")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"--truth {path} cannot be read ({reason}): give a CSV file.") from error
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        _check_heading(path, [name.strip().lower() for name in reader.fieldnames or ()])
        return tuple(_row({(k or "").strip().lower(): v for k, v in line.items()}) for line in reader)
    except csv.Error as error:
        raise InputError(f"--truth {path} is no CSV: {error}.") from error


def truth_for(rows: Sequence[TruthRow], column: Column, frames: Sequence[Row]) -> dict[Place, Expected]:
    """Return what is known of each frame for the prompt of one column."""
    known: dict[str, Expected] = {}
    for row in rows:
        if row.prompt in ("", column.prompt_id, column.prompt):
            known[row.frame] = row.expected
    found: dict[Place, Expected] = {}
    for frame in frames:
        names = (str(frame.frame), file_name(frame.source), frame.source)
        expected = next((known[name] for name in names if name in known), None)
        if expected is not None:
            found[frame.recording, frame.frame] = expected
    return found


def expected_answer(text: str, is_list: str = "") -> Expected:
    """Return what is true when the whole answer is known: a description line, or a list of some kind."""
    found = parse_description(text)
    items = as_items(text.split(","))
    return Expected(
        text=text,
        apps=as_items(found.apps) if found else items if is_list == "apps" else None,
        topics=as_items(found.topics) if found else items if is_list == "topics" else None,
        is_list=is_list,
    )


def file_name(source: str) -> str:
    """Return the last part of a frame's source."""
    return source.replace("\\", "/").rpartition("/")[2]


def _check_heading(path: Path, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in _FIELDS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _FIELDS, 1)
        hint = f"did you mean {near[0]!r}" if near else f"expected some of {', '.join(_FIELDS)}"
        raise InputError(f"--truth {path}: unknown column {unknown[0]!r}; {hint}.")
    if "frame" not in names or not _WHAT & set(names):
        raise InputError(
            f"--truth {path}: expected a column 'frame' and at least one of {', '.join(sorted(_WHAT))}; "
            f"got {', '.join(names) or 'an empty file'}."
        )


def _row(line: dict[str, str | None]) -> TruthRow:
    def field(name: str) -> str | None:
        return (line.get(name) or "").strip() or None

    expected = Expected(
        field("text"),
        field("description"),
        field("activity"),
        _list(field("apps")),
        _list(field("topics")),
    )
    frame = field("frame") or ""
    index = str(int(frame)) if frame.isascii() and frame.isdigit() else frame
    return TruthRow(index, field("prompt") or "", expected)


def _list(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    return as_items(re.split(r"[;,]", text.strip("[]")))
