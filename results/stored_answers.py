"""The answers of a run that was made before, as an export needs them.

Owns finding a run by name and reading its lines leniently: a line that was cut off by a kill is told,
and the rest is used. Does not own writing runs (``results.run``).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.errors import InputError, StoreError
from cache.home import Home
from results.answers import Description

_RUNS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt said of one frame; ``parsed`` is None where the text is no description line."""

    recording: str
    frame: int
    timestamp_s: float
    source: str
    key: str
    prompt_id: str
    prompt: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    parsed: Description | None
    error: str | None


def find_run(home: Home, selector: str) -> Path:
    """Return the folder of a run: ``latest``, its id, or the start of one.

    Raises:
        InputError: no such run, or several fit.
    """
    ids = sorted((path.parent.name for path in home.runs.glob("*/run.json")), reverse=True)
    fits = ids[:1] if selector == "latest" else [id_ for id_ in ids if id_ == selector]
    fits = fits or [id_ for id_ in ids if selector and id_.startswith(selector)]
    if len(fits) == 1:
        return home.runs / fits[0]
    if not ids:
        raise InputError(f"No run in {home.runs}: run seeonce describe first")
    named = ", ".join((fits or ids)[:_RUNS_NAMED])
    raise InputError(
        f"{selector!r} fits {named}: give more of the id"
        if fits
        else f"No run {selector!r}; the newest are {named}"
    )


def read_answers(run: Path, say: Callable[[str], None]) -> list[Answer]:
    """Read the answers of a run, by frame and then as they were asked. Lines that are none are told.

    Raises:
        StoreError: the results cannot be read.
    """
    path = run / "results.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); is it a run of seeonce describe?"
        ) from error
    answers = []
    for number, line in enumerate(lines, 1):
        try:
            answers.append(_answer(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            say(f"{path}, line {number}: not a result ({type(error).__name__}); it is left out")
    return sorted(answers, key=lambda answer: answer.frame)


def _answer(line: dict[str, object]) -> Answer:
    usage = line["usage"]
    timestamp_s = line["timestamp_s"]
    if not isinstance(usage, dict) or not isinstance(timestamp_s, int | float):
        raise TypeError
    if not math.isfinite(timestamp_s):
        raise ValueError
    error = line["error"]
    return Answer(
        recording=_text(line["recording"]),
        frame=_integer(line["frame"]),
        timestamp_s=float(timestamp_s),
        source=_text(line["source"]),
        key=_text(line["key"]),
        prompt_id=_text(line["prompt_id"]),
        prompt=_text(line["prompt"]),
        text=_text(line["text"]),
        finish_reason=_text(line["finish_reason"]),
        prompt_tokens=_integer(usage["prompt_tokens"]),
        completion_tokens=_integer(usage["completion_tokens"]),
        parsed=_description(line["parsed"]),
        error=None if error is None else _text(error),
    )


def _description(parsed: object) -> Description | None:
    """Take a description line's fields, or a JSON answer that has the same."""
    if not isinstance(parsed, dict):
        return None
    try:
        return Description(
            _text(parsed["description"]),
            _text(parsed["activity"]),
            _texts(parsed["apps"]),
            _texts(parsed["topics"]),
        )
    except (KeyError, TypeError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_text, value))
