"""The descriptions that a recording had before: Escribano's, row by row, as one side of a comparison.

Owns what of a row is a description. Reads the database only.
"""

import json
from collections.abc import Sequence

from cache.errors import InputError
from cache.home import Home
from seeonce.runs.answers import Description
from seeonce.runs.compare import Place, Said
from seeonce.runs.export_escribano import target_of
from seeonce.runs.export_plan import DESCRIPTION, rows_of
from seeonce.runs.run import Result
from sources.escribano_db import Shape, reading

_COLUMNS = (DESCRIPTION, "activity_type", "apps", "topics")


def recorded_descriptions(home: Home, answers: Sequence[Result]) -> dict[Place, Said]:
    """Return what Escribano says of the frames that ``answers`` are about; frames without are left out.

    Raises:
        InputError: the recording is not from Escribano, or its database cannot be read.
    """
    found: dict[Place, Said] = {}
    if not answers:
        return found
    target = target_of(home, answers[0].recording)
    with reading(target.database) as connection:
        shape = Shape(connection)
        if not shape.has("observations", "id", "recording_id", "type", DESCRIPTION):
            raise InputError(f"{target.database}: no table observations with descriptions")
        columns = [column for column in _COLUMNS if shape.has("observations", column)]
        for answer in answers:
            try:
                rows = rows_of(connection, shape, columns, target.recording, answer)
            except InputError:  # this frame has no row: nothing was said of it
                continue
            said = _said(dict(zip(columns, rows[0][1:], strict=True)))
            if said is not None:
                found[answer.recording, answer.frame] = said
    return found


def _said(row: dict[str, object]) -> Said | None:
    text = row.get(DESCRIPTION)
    if not isinstance(text, str) or not text.strip():
        return None
    activity = row.get("activity_type")
    return Said(
        text,
        Description(
            text,
            activity if isinstance(activity, str) else "",
            _items(row.get("apps")),
            _items(row.get("topics")),
        ),
    )


def _items(value: object) -> tuple[str, ...]:
    """Read a list that is kept as JSON text."""
    try:
        items = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return ()
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()
