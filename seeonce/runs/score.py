"""Answers against the truth: exact matches, precision and recall of lists, and frames mixed up."""

import csv
import difflib
import io
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.base.errors import InputError
from cache.base.text import percent, visible
from seeonce.runs.compare import MATCH_ABOVE, FrameRef, as_items, normalised, word_similarity
from seeonce.runs.find import RECORDED
from seeonce.runs.run import Result
from seeonce.runs.sheet import Column, Row, Sheet


@dataclass(frozen=True, slots=True)
class Expected:
    """What is true of one frame, as far as it is known: the whole answer, or fields of a description.

    ``apps`` and ``topics`` are lower case.
    """

    text: str | None = None
    description: str | None = None
    activity: str | None = None
    apps: frozenset[str] | None = None
    topics: frozenset[str] | None = None

    @property
    def only_kind(self) -> str:
        """The kind of items that is all that is known: an answer without fields is such a list."""
        kinds = [kind for kind, items in (("apps", self.apps), ("topics", self.topics)) if items is not None]
        return kinds[0] if len(kinds) == 1 and not (self.description or self.activity) else ""


@dataclass(frozen=True, slots=True)
class ListScore:
    """How many items of a kind were named rightly, wrongly, or not at all, over all frames."""

    num_right: int = 0
    num_wrong: int = 0
    num_missed: int = 0

    @property
    def precision(self) -> float | None:
        """The share of named items that are true; ``None`` when none was named."""
        named = self.num_right + self.num_wrong
        return self.num_right / named if named else None

    @property
    def recall(self) -> float | None:
        """The share of true items that were named; ``None`` without any true item."""
        true = self.num_right + self.num_missed
        return self.num_right / true if true else None

    def __str__(self) -> str:
        """Say it for a human."""
        return (
            f"precision {percent(self.precision)}, recall {percent(self.recall)} "
            f"({self.num_right} right, {self.num_wrong} wrong, {self.num_missed} missed)"
        )


@dataclass(frozen=True, slots=True)
class MixUp:
    """A frame whose answer fits another frame's truth, ``like_frame``'s, better than its own."""

    recording: str
    frame: int
    like_frame: int
    own_score: float
    other_score: float
    text: str


@dataclass(frozen=True, slots=True)
class PromptScore:
    """How one prompt of one run did. ``num_exact`` of ``num_scored`` answers are true in every field."""

    label: str
    run: str
    prompt: str
    num_scored: int
    num_exact: int
    apps: ListScore | None
    topics: ListScore | None
    mix_ups: tuple[MixUp, ...]

    @property
    def exact(self) -> float:
        """The share of answers that are exactly true."""
        return self.num_exact / self.num_scored if self.num_scored else 0.0


Truth = Mapping[FrameRef, Expected]


def score_column(sheet: Sheet, number: int, truth: Truth) -> PromptScore:
    """Score one column of a sheet; answers that failed count as wrong, frames of unknown truth not at all."""
    scored = [
        ((row.recording, row.frame), cell, truth[row.recording, row.frame])
        for row in sheet.rows
        if (cell := row.cells[number]) is not None and (row.recording, row.frame) in truth
    ]
    column = sheet.columns[number]
    return PromptScore(
        label=column.label,
        run=column.runs[0].info.id,
        prompt=column.prompt,
        num_scored=len(scored),
        num_exact=sum(is_true(cell, expected) for _, cell, expected in scored),
        apps=_list_score(scored, "apps"),
        topics=_list_score(scored, "topics"),
        mix_ups=tuple(
            found for place, cell, expected in scored if (found := _mix_up(place, cell, expected, truth))
        ),
    )


def is_true(cell: Result, expected: Expected) -> bool:
    """Tell whether an answer is true in everything that is known of its frame."""
    if cell.error is not None:
        return False
    if expected.text is not None:
        return normalised(cell.text) == normalised(expected.text)
    found = cell.description
    pairs = [
        (expected.description, found and normalised(found.description)),
        (expected.activity, found and normalised(found.activity)),
        (expected.apps, _items(cell, expected, "apps")),
        (expected.topics, _items(cell, expected, "topics")),
    ]
    return all(wanted is None or _plain(wanted) == got for wanted, got in pairs)


def _plain(value: str | frozenset[str]) -> str | frozenset[str]:
    return normalised(value) if isinstance(value, str) else value


def _items(cell: Result, expected: Expected, kind: str) -> frozenset[str]:
    """Return the items of a kind that an answer names."""
    if (found := cell.description) is not None:
        return as_items(found.apps if kind == "apps" else found.topics)
    return as_items(cell.text.split(",")) if expected.only_kind == kind else frozenset()


def _list_score(scored: Sequence[tuple[FrameRef, Result, Expected]], kind: str) -> ListScore | None:
    """Count the items of a kind over all frames whose true items are known; ``None`` without such a frame."""
    right = wrong = missed = num_known = 0
    for _, cell, expected in scored:
        wanted = expected.apps if kind == "apps" else expected.topics
        if wanted is None:
            continue
        named = _items(cell, expected, kind) if cell.error is None else frozenset()
        right, wrong = right + len(named & wanted), wrong + len(named - wanted)
        missed, num_known = missed + len(wanted - named), num_known + 1
    return ListScore(right, wrong, missed) if num_known else None


def _mix_up(place: FrameRef, cell: Result, own: Expected, truth: Truth) -> MixUp | None:
    """Return whose truth a wrong answer tells, when it tells another frame's and tells it well.

    Of several frames with that truth the nearest is named.
    """
    if cell.error is not None or is_true(cell, own):
        return None
    own_score = _fit(cell, own)
    fits: dict[Expected, float] = {own: own_score}
    best: tuple[float, int, int] | None = None
    for (recording, frame), expected in truth.items():
        if recording != place[0] or expected == own:
            continue
        if expected not in fits:
            fits[expected] = 1.0 if is_true(cell, expected) else _fit(cell, expected)
        candidate = (-fits[expected], abs(frame - place[1]), frame)
        best = candidate if best is None or candidate < best else best
    if best is None or -best[0] <= max(own_score, MATCH_ABOVE):
        return None
    return MixUp(*place, best[2], own_score, -best[0], cell.text)


def _fit(cell: Result, expected: Expected) -> float:
    """Return how well an answer tells a truth, 0.0 to 1.0: the mean over what is known."""
    found, fits = cell.description, []
    if expected.text is not None:
        return word_similarity(cell.text, expected.text)
    if expected.description is not None:
        fits.append(word_similarity(found.description if found else cell.text, expected.description))
    if expected.activity is not None:
        fits.append(word_similarity(found.activity if found else "", expected.activity))
    for kind, wanted in (("apps", expected.apps), ("topics", expected.topics)):
        if wanted is not None:
            named = _items(cell, expected, kind)
            union = named | wanted
            fits.append(len(named & wanted) / len(union) if union else 1.0)
    return sum(fits) / len(fits) if fits else 0.0


_FIELDS = ("recording", "frame", "prompt", "text", "description", "activity", "apps", "topics")
_WHAT = frozenset(_FIELDS) - {"recording", "frame", "prompt"}
_MAX_BYTES = 64 << 20
_NUM_NAMED = 3


Truths = Mapping[tuple[str | None, str, str | None], Expected]
"""What a file says, by recording, frame and prompt; one is ``None`` where there is no such column."""


def read_truth(path: Path) -> Truths:
    """Read a CSV file with a heading, separated by commas, semicolons or tabs.

    Raises:
        InputError: it cannot be read, lacks a column or has one of unknown name; or a line names no frame,
            has more fields than the heading, or is about what an earlier line is about.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"--truth {path} is larger than {_MAX_BYTES >> 20} MB: is it a CSV of frames?")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"--truth {path} cannot be read ({reason}): give a CSV file.") from error
    try:
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text), delimiter=separator, restkey="", strict=True)
        _check_heading(path, [name.strip().lower() for name in reader.fieldnames or ()])
        return _rows(path, reader)
    except csv.Error as error:
        raise InputError(f"--truth {path} is no CSV: {error}.") from error


def _rows(path: Path, reader: "csv.DictReader[str]") -> Truths:
    rows: dict[tuple[str | None, str, str | None], Expected] = {}
    line_of: dict[tuple[str | None, str, str | None], int] = {}
    for line in reader:
        if any(line.pop("", [])):
            raise InputError(
                f"--truth {path}: line {reader.line_num} has more fields than the heading: quote those "
                f"with a {reader.reader.dialect.delimiter!r} in them."
            )
        if not any(value and value.strip() for value in line.values()):
            continue  # spreadsheets end in such lines
        about, expected = _row({name.strip().lower(): value for name, value in line.items()})
        if not about[1]:
            raise InputError(f"--truth {path}: line {reader.line_num} names no frame.")
        if about in rows:
            raise InputError(
                f"--truth {path}: line {reader.line_num} is about the frame and prompt that line "
                f"{line_of[about]} is about: keep one of them."
            )
        rows[about], line_of[about] = expected, reader.line_num
    return rows


def check_truth(path: Path, truths: Truths, sheet: Sheet) -> None:
    """Refuse a file that does not say which prompt or recording its rows are about, where there are several.

    Raises:
        InputError: it lacks a column that is needed.
    """
    prompts = {column.prompt for column in sheet.columns} - {RECORDED}
    if len(prompts) > 1 and any(prompt is None for _, _, prompt in truths):
        raise InputError(
            f"--truth {path} has no column 'prompt' and {len(prompts)} prompts were asked: add it, with the "
            "text of the prompt that a row is about (empty: every prompt), or name one prompt, as in RUN:1."
        )
    recordings = {row.recording for row in sheet.rows}
    if len(recordings) > 1 and any(recording is None for recording, _, _ in truths):
        raise InputError(
            f"--truth {path} has no column 'recording' and the answers are about {len(recordings)} of them: "
            "add it, with the id of the recording that a row is about (empty: every recording)."
        )


def why_unused(path: Path, truths: Truths, sheet: Sheet) -> str:
    """Say why no row of a file is about any answer of a sheet."""
    recordings = {row.recording for row in sheet.rows}
    prompts = {column.prompt for column in sheet.columns}
    ids = {column.prompt_id for column in sheet.columns}
    for what, named, asked, known in (
        ("recording", {recording or "" for recording, _, _ in truths}, recordings, recordings),
        ("prompt", {prompt or "" for _, _, prompt in truths}, prompts, prompts | ids),
    ):
        if named and named.isdisjoint(known | {""}):
            return (
                f"--truth {path} has no row about the {what} {_quoted(asked)}: its rows are about "
                f"{_quoted(named)}."
            )
    return f"--truth {path} names no frame of {sheet.rows[0].recording}: frames are named by index or file."


def _quoted(names: Collection[str]) -> str:
    shown = [repr(textwrap.shorten(visible(name), 60, placeholder="…")) for name in sorted(names)]
    return ", ".join(shown[:_NUM_NAMED]) + (", …" if len(shown) > _NUM_NAMED else "")


def truth_for(truths: Truths, column: Column, frames: Sequence[Row]) -> dict[FrameRef, Expected]:
    """Return what is known of each frame for the prompt of one column."""
    known: dict[tuple[str, str], Expected] = {}
    # What is true of this prompt goes before what is true of every one.
    for (recording, name, prompt), expected in sorted(truths.items(), key=lambda row: bool(row[0][2])):
        if prompt in (None, "", column.prompt_id, column.prompt):
            known[recording or "", name] = expected
    found: dict[FrameRef, Expected] = {}
    for frame in frames:
        names = (str(frame.frame), file_name(frame.source), frame.source)
        places = [(recording, name) for recording in (frame.recording, "") for name in names]
        place = next((place for place in places if place in known), None)
        if place is not None:
            found[frame.recording, frame.frame] = known[place]
    return found


def file_name(source: str) -> str:
    """Return the last part of a frame's source."""
    return source.rpartition("/")[2]


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


def _row(line: dict[str, str | None]) -> tuple[tuple[str | None, str, str | None], Expected]:
    def field(name: str) -> str | None:
        return (line.get(name) or "").strip() or None

    def named(name: str) -> str | None:
        return (line[name] or "").strip() if name in line else None

    expected = Expected(
        field("text"),
        field("description"),
        field("activity"),
        _list(field("apps")),
        _list(field("topics")),
    )
    frame = field("frame") or ""
    index = str(int(frame)) if frame.isascii() and frame.isdigit() else frame
    return (named("recording"), index, named("prompt")), expected


def _list(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    return as_items(re.split(r"[;,]", text.strip("[]")))
