"""What Escribano's own model said of frames, as if a run had said it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cache.base.errors import InputError
from cache.base.home import Home
from infer.request import Usage
from seeonce.runs.export.escribano import DESCRIPTION, is_description, rows_of
from seeonce.runs.export.escribano_write import target_of
from seeonce.runs.find import RECORDED
from seeonce.runs.parse import Description
from seeonce.runs.run import Result, Run, RunInfo
from sources.escribano_db import Shape, reading

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
            except InputError:  # its row is gone: nothing was said of it
                continue
            said = _said(dict(zip(columns, rows[0][1:], strict=True))) if rows else None
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
    if not isinstance(text, str) or not is_description(text):
        return None
    activity = row.get("activity_type")
    return Description(
        text,
        activity if isinstance(activity, str) else "",
        _items(row.get("apps")),
        _items(row.get("topics")),
    )


def _items(value: object) -> tuple[str, ...]:
    """Read a list that is kept as JSON text, or with commas, as Escribano's analyzer of frames writes it."""
    if not isinstance(value, str):
        return ()
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()
