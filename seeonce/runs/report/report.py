"""The report: runs side by side as one HTML file that asks no server for anything.

The page itself is ``report.html`` with ``report.css`` and ``report.js``; Jinja2 escapes every value, and
the page's content security policy allows no script but that file's text, by its digest, and no network at
all.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import combinations, groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from cache.base.text import counted, visible
from cache.manifest import Manifest, SkippedFrame
from seeonce.runs.compare import FrameRef, normalised, word_similarity
from seeonce.runs.prompts import clock
from seeonce.runs.report.pictures import DataUris, PictureOf
from seeonce.runs.run import Result, Run
from seeonce.runs.score import Expected, PromptScore, file_name, is_true, score_column
from seeonce.runs.sheet import Column, Row, Sheet, Variant, savings_of

_NUM_COLOURS = 8
_MAX_CHOICES = 100
_MAX_OPEN_TIMELINES = 4
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer as the page shows it, once for all variants of a prompt that gave it.

    ``parts`` are named pieces of it: fields, or ``text`` for the whole. ``failure`` says why there is no
    answer, or no good one. ``is_true`` is ``None`` where the truth is not known.
    """

    columns: tuple[Column, ...]
    parts: tuple[tuple[str, str], ...]
    failure: str
    is_true: bool | None


@dataclass(frozen=True, slots=True)
class ShownFrame:
    """A frame as the page shows it.

    ``picture`` numbers the thumbnails; equal pictures share one, which the first of their frames has.
    """

    number: int
    clock: str
    name: str
    picture: int | None
    is_first: bool


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A stretch of frames of one recording that got the same answers; ``cells`` has one for each prompt."""

    recording: str
    frames: tuple[ShownFrame, ...]
    cells: tuple[tuple[ShownAnswer, ...], ...]
    difference: float
    apps: str
    activities: str

    @property
    def place(self) -> str:
        """What names its first frame within the page."""
        return f"{self.recording}/{self.frames[0].number}"

    @property
    def failed(self) -> bool:
        """Whether there is no answer, or no good one."""
        return any(answer.failure for answers in self.cells for answer in answers)

    @property
    def is_wrong(self) -> bool:
        """Whether an answer is known to be untrue."""
        return any(answer.is_true is False for answers in self.cells for answer in answers)

    @property
    def differs(self) -> bool:
        """Whether variants of a prompt gave different answers."""
        return any(len(answers) > 1 for answers in self.cells)


@dataclass(frozen=True, slots=True)
class ColumnTotals:
    """The figures of one column; ``num_parsed`` is ``None`` when no form was asked for or given."""

    column: Column
    num_answers: int
    num_failed: int
    num_parsed: int | None
    score: PromptScore | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of frames with one activity, in thousandths of the recording."""

    start: float
    width: float
    colour: int
    activity: str
    clock: str
    place: str


def render_report(
    sheet: Sheet,
    picture_of: PictureOf,
    num_tokens_of: Callable[[str], int],
    truths: Sequence[Mapping[FrameRef, Expected]] = (),
    title: str = "",
    manifests: Sequence[Manifest] = (),
) -> str:
    """Return the page.

    ``num_tokens_of`` gives how many merged tokens the entry of a key has, 0 if gone. ``truths`` has what is
    known of each column's frames, or nothing for any. ``title`` is shown above the recordings. ``manifests``
    tell which frames of the recordings have no answers.
    """
    truths = truths or [{}] * len(sheet.columns)
    pictures = DataUris(picture_of)
    rows = [_row(stretch, pictures) for stretch in _stretches(sheet, truths)]
    # The most frequent activities have a colour each; all others share the last.
    activities = _choices(sheet, _activity)
    colours = {name: min(number, _NUM_COLOURS) for number, (name, _) in enumerate(activities)}
    timelines = list(_timelines(sheet, colours))
    recordings = sorted({row.recording for row in sheet.rows})
    css, script = _text_of("report.css"), _text_of("report.js")
    return _template().render(
        policy=_policy(css, script),
        css=Markup(css),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        title=title,
        sheet=sheet,
        prompts=[next(group) for _, group in groupby(sheet.columns, lambda column: column.prompt_number)],
        recorded=[column for column in sheet.columns if sheet.variants[column.variant_number].is_recorded],
        rows=rows,
        by_recording=[(name, list(own)) for name, own in groupby(rows, lambda row: row.recording)],
        pictures=pictures.uris,
        num_without_picture=sum(frame.picture is None for row in rows for frame in row.frames),
        totals=[_totals(sheet, number, truth) for number, truth in enumerate(truths)],
        has_truth=any(truths),
        savings=savings_of(sheet, num_tokens_of),
        timelines=timelines,
        are_timelines_open=len(timelines) <= _MAX_OPEN_TIMELINES,
        legend=[(name, colour) for name, colour in colours.items() if colour < _NUM_COLOURS],
        apps=_choices(sheet, lambda cell: cell.description.apps if cell.description else ()),
        activities=activities,
        recordings=recordings,
        left_out=list(_left_out(sheet, manifests)),
        runs=[
            (run, number)
            for number, variant in enumerate(sheet.variants)
            for run in variant.runs
            if not variant.is_recorded
        ],
        decoded_per_s=_decoded_per_s,
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": visible, "share": _share, "settings": _settings}
    environment.filters |= {"counted": counted, "file_name": file_name}
    return environment.from_string(_text_of("report.html"))


def _policy(css: str, script: str) -> str:
    """Return a policy under which the page runs its own script, and can reach nobody."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(css)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _text_of(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


_Answered = tuple[Row, tuple[tuple[ShownAnswer, ...], ...]]


def _stretches(sheet: Sheet, truths: Sequence[Mapping[FrameRef, Expected]]) -> Iterator[list[_Answered]]:
    """Yield neighbours of one recording that got the same answers, together; no frame lies between them."""
    parsed = [any(cell.description for cell in sheet.cells(n)) for n in range(len(sheet.columns))]
    answered = [(row, _answers(sheet, row, parsed, truths)) for row in sheet.rows]
    numbered = enumerate(answered)
    for _, stretch in groupby(
        numbered, lambda item: (item[1][0].recording, item[1][0].frame - item[0], item[1][1])
    ):
        yield [each for _, each in stretch]


def _left_out(
    sheet: Sheet, manifests: Sequence[Manifest]
) -> Iterator[tuple[str, int, int, list[SkippedFrame]]]:
    """Yield recordings with frames that have no answer: how many have one, of how many, which are unread."""
    asked = {run.info.encoder_id for column in sheet.columns for run in column.runs}
    for recording, rows in groupby(sheet.rows, lambda row: row.recording):
        shown = {row.frame for row in rows}
        own = [one for one in manifests if one.recording.id == recording]
        own = [one for one in own if one.encoder.encoder_id.hex in asked]
        num_frames = max((one.recording.num_frames for one in own), default=0)
        skipped = {frame.index: frame for one in own for frame in one.skipped if frame.index not in shown}
        if len(shown) < num_frames:
            yield recording, len(shown), num_frames, [skipped[index] for index in sorted(skipped)]


def _answers(
    sheet: Sheet, row: Row, parsed: Sequence[bool], truths: Sequence[Mapping[FrameRef, Expected]]
) -> tuple[tuple[ShownAnswer, ...], ...]:
    """Return the answers to each prompt, equal ones once."""
    found: dict[int, dict[object, list[Column]]] = {column.prompt_number: {} for column in sheet.columns}
    for number, (column, cell) in enumerate(zip(sheet.columns, row.cells, strict=True)):
        if cell is not None:
            expected = truths[number].get((row.recording, row.frame))
            verdict = None if expected is None else is_true(cell, expected)
            said = (*_parts(cell, asked_for_fields=parsed[number]), verdict)
            found[column.prompt_number].setdefault(said, []).append(column)
    return tuple(
        tuple(ShownAnswer(tuple(columns), *said) for said, columns in answers.items())  # type: ignore[misc]
        for answers in found.values()
    )


def _parts(cell: Result, *, asked_for_fields: bool) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the named pieces of an answer, and what is wrong with it."""
    found = cell.description
    if cell.error is not None:
        failure = f"error: {cell.error}"
    elif cell.was_cut:
        failure = f"cut off after {cell.usage.completion_tokens} tokens"
    else:
        failure = "not in the form of the other answers" if asked_for_fields and found is None else ""
    if found is None:
        return (("text", cell.text),) if cell.text else (), failure
    fields = (
        ("description", found.description),
        ("activity", found.activity),
        ("apps", ", ".join(found.apps)),
        ("topics", ", ".join(found.topics)),
    )
    return fields, failure


def _row(stretch: Sequence[_Answered], pictures: DataUris) -> ShownRow:
    row, cells = stretch[0]
    descriptions = [
        cell.description for cell in row.cells if cell is not None and cell.description is not None
    ]
    return ShownRow(
        recording=row.recording,
        frames=tuple(
            ShownFrame(
                each.frame, clock(each.timestamp_s), file_name(each.source), *pictures.number(each.key)
            )
            for each, _ in stretch
        ),
        cells=cells,
        difference=max(map(_difference, cells)),
        apps="\n".join(sorted({_shown(app) for one in descriptions for app in one.apps})),
        activities="\n".join(sorted({_shown(one.activity) for one in descriptions})),
    )


def _difference(answers: Sequence[ShownAnswer]) -> float:
    """Return how much the different answers to one prompt differ on average, 0.0 to 1.0."""
    texts = [normalised(" ".join(text for _, text in answer.parts)) for answer in answers]
    pairs = [1 - word_similarity(left, right) for left, right in combinations(texts, 2)]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _totals(sheet: Sheet, number: int, truth: Mapping[FrameRef, Expected]) -> ColumnTotals:
    cells, column = list(sheet.cells(number)), sheet.columns[number]
    schema = column.runs[0].info.sampling.schema  # an answer that does not follow it is an error
    num_parsed = sum(cell.error is None if schema else cell.description is not None for cell in cells)
    return ColumnTotals(
        column,
        num_answers=len(cells),
        num_failed=sum(cell.error is not None for cell in cells),
        num_parsed=num_parsed if num_parsed or schema or "description:" in column.prompt else None,
        score=score_column(sheet, number, truth) if truth else None,
    )


def _decoded_per_s(run: Run) -> float | None:
    """Return how many answers were decoded a second; ``None`` when all were known."""
    totals = run.info.totals
    num_decoded = len(run.answers) - totals.num_known - totals.num_repeated
    return num_decoded / totals.seconds if num_decoded > 0 and totals.seconds else None


def _settings(variant: Variant) -> list[tuple[str, str]]:
    """Return all that the runs of a variant were asked with, by name."""
    infos = [run.info for run in variant.runs]
    info = infos[0]
    found: dict[str, object] = {"model": info.model, "revision": info.revision}
    found |= {"compute dtype": info.compute_dtype}
    found |= {name.replace("_", " "): value for name, value in asdict(info.sampling).items()}
    found |= {name.replace("_", " "): value for name, value in asdict(info.showing).items()}
    found |= info.versions
    found["runs"] = ", ".join(one.id for one in infos)
    return [(name, _value(value)) for name, value in found.items() if value not in (None, "", ())]


def _value(value: object) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _choices(sheet: Sheet, names_of: Callable[[Result], tuple[str, ...]]) -> list[tuple[str, int]]:
    """Return what can be filtered by and on how many frames it is, most frequent first."""
    counts = Counter(
        name
        for row in sheet.rows
        for name in {_shown(name) for cell in row.cells if cell for name in names_of(cell)}
        if name
    )
    return counts.most_common(_MAX_CHOICES)


def _activity(cell: Result) -> tuple[str, ...]:
    return (cell.description.activity,) if cell.description is not None else ()


def _shown(name: str) -> str:
    """Return an application or activity as it is counted: without case and white space that says nothing."""
    return normalised(name).casefold()[:200]


def _timelines(sheet: Sheet, colours: dict[str, int]) -> Iterator[tuple[str, Column, tuple[Bar, ...]]]:
    """Yield what each column says was being done in each recording."""
    for recording, own in groupby(sheet.rows, lambda row: row.recording):
        rows = list(own)
        for number, column in enumerate(sheet.columns):
            bars = _bars(rows, number, colours)
            if bars:
                yield recording, column, bars


def _bars(rows: Sequence[Row], number: int, colours: dict[str, int]) -> tuple[Bar, ...]:
    """Return stretches of equal activity; a frame lasts until the next, the last as long as on average."""
    times = [row.timestamp_s for row in rows]
    begin, last = times[0], times[-1]
    end = last + ((last - begin) / (len(times) - 1) if len(times) > 1 and last > begin else 1.0)
    scale = 1000 / (end - begin)
    bars: list[Bar] = []
    for row, until in zip(rows, [*times[1:], end], strict=True):
        cell = row.cells[number]
        name = _shown(cell.description.activity) if cell is not None and cell.description is not None else ""
        start, width = (row.timestamp_s - begin) * scale, max(until - row.timestamp_s, 0) * scale
        if bars and bars[-1].activity == name:
            before = bars.pop()
            bars.append(replace(before, width=before.width + width))
        else:
            colour, place = colours.get(name, _NUM_COLOURS), f"{row.recording}/{row.frame}"
            bars.append(Bar(start, width, colour, name, clock(row.timestamp_s), place))
    return tuple(bar for bar in bars if bar.activity)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
