"""The report: runs side by side as one HTML file that asks no server for anything.

The page itself is ``report.html`` with ``report.css`` and ``report.js``; Jinja2 escapes every value, and
the page's content security policy allows no script but that file's text, by its digest, and no network at
all.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cache.base.errors import SeeonceError, StoreError
from cache.base.home import Home
from cache.base.text import visible
from cache.key import EntryKey, PixelDigest
from cache.manifest import list_manifests, read_manifest
from cache.store import Store
from cache.thumbnails import Thumbnails
from seeonce.runs.compare import normalised, word_similarity
from seeonce.runs.score import file_name
from seeonce.runs.sheet import Cell, Column, Row, Sheet, savings_of

Picture = Callable[[str], bytes | None]
"""Gives the WebP thumbnail of the frame of a key, or ``None``."""

_NUM_COLOURS = 8
_MAX_CHOICES = 100
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of an answer; ``name`` is a field's, or ``text`` for the whole answer."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ShownCell:
    """An answer as the page shows it. ``failure`` says why it is none, or not a good one."""

    parts: tuple[Part, ...]
    failure: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A frame as the page shows it. ``picture`` numbers the thumbnails; equal pictures share one."""

    place: str
    recording: str
    frame: int
    clock: str
    name: str
    picture: int | None
    is_first: bool
    difference: float
    differs: bool
    failed: bool
    apps: str
    activities: str
    cells: tuple[ShownCell | None, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of frames with one activity, in thousandths of the recording."""

    start: float
    width: float
    colour: int
    activity: str
    clock: str
    place: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """What one column says was being done in one recording."""

    recording: str
    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class ColumnTotals:
    """The figures of one column."""

    column: Column
    num_answers: int
    num_failed: int
    num_parsed: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """An application or activity to filter by."""

    name: str
    num_frames: int


def render_report(sheet: Sheet, picture_of: Picture, num_tokens_of: Callable[[str], int]) -> str:
    """Return the page. ``num_tokens_of`` gives how many merged tokens the entry of a key has, 0 if gone."""
    parsed = [any(cell.description for cell in sheet.cells(n)) for n in range(len(sheet.columns))]
    pictures = _Pictures(picture_of)
    rows = [_row(row, parsed, pictures) for row in sheet.rows]
    colours = _colours(sheet)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    environment.filters["share"] = _share
    css, script = _text_of("report.css"), _text_of("report.js")
    return environment.from_string(_text_of("report.html")).render(
        policy=_policy(css, script),
        css=Markup(css),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        sheet=sheet,
        rows=rows,
        pictures=pictures.uris,
        num_without_picture=sum(row.picture is None for row in rows),
        totals=[_totals(sheet, number) for number in range(len(sheet.columns))],
        savings=savings_of(sheet, num_tokens_of),
        timelines=list(_timelines(sheet, colours)),
        legend=[(name, colour) for name, colour in colours.items() if colour < _NUM_COLOURS],
        apps=_choices(sheet, lambda cell: cell.description.apps if cell.description else ()),
        activities=_choices(sheet, _activity),
        recordings=sorted({row.recording for row in sheet.rows}),
        runs=list({column.run.id: column for column in sheet.columns}.values()),
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


class _Pictures:
    """Thumbnails as data URIs, each once."""

    def __init__(self, picture_of: Picture) -> None:
        self._picture_of = picture_of
        self._numbers: dict[bytes, int] = {}
        self._of_key: dict[str, int | None] = {}
        self.uris: list[str] = []

    def number(self, key: str) -> tuple[int | None, bool]:
        """Return the number of a key's thumbnail, and whether it was not asked for before."""
        before = len(self.uris)
        if key not in self._of_key:
            content = self._picture_of(key)
            self._of_key[key] = None if content is None else self._add(content)
        return self._of_key[key], len(self.uris) > before

    def _add(self, content: bytes) -> int:
        if content not in self._numbers:
            self._numbers[content] = len(self.uris)
            self.uris.append("data:image/webp;base64," + base64.b64encode(content).decode("ascii"))
        return self._numbers[content]


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


def _row(row: Row, parsed: Sequence[bool], pictures: _Pictures) -> ShownRow:
    cells = tuple(
        None if cell is None else _cell(cell, asked_for_fields=fields)
        for cell, fields in zip(row.cells, parsed, strict=True)
    )
    texts = [normalised(cell.text) for cell in row.cells if cell is not None]
    pairs = [1 - word_similarity(left, right) for left, right in combinations(texts, 2)]
    picture, is_first = pictures.number(row.key)
    found = [cell.description for cell in row.cells if cell is not None and cell.description is not None]
    return ShownRow(
        place=_place(row),
        recording=row.recording,
        frame=row.frame,
        clock=clock(row.timestamp_s),
        name=file_name(row.source),
        picture=picture,
        is_first=is_first,
        difference=sum(pairs) / len(pairs) if pairs else 0.0,
        differs=len(set(texts)) > 1,
        failed=any(cell is not None and cell.failure for cell in cells),
        apps="\n".join(sorted({_shown(app) for one in found for app in one.apps})),
        activities="\n".join(sorted({_shown(one.activity) for one in found})),
        cells=cells,
    )


def _place(row: Row) -> str:
    return f"{row.recording}/{row.frame}"


def _cell(cell: Cell, *, asked_for_fields: bool) -> ShownCell:
    found = cell.description
    if cell.error is not None:
        failure = f"error: {cell.error}"
    elif cell.was_cut:
        failure = f"cut off after {cell.answer_tokens} tokens"
    else:
        failure = "not in the form of the other answers" if asked_for_fields and found is None else ""
    if found is None:
        return ShownCell((Part("text", cell.text),) if cell.text else (), failure, cell.answer_tokens)
    parts = (
        Part("description", found.description),
        Part("activity", found.activity),
        Part("apps", ", ".join(found.apps)),
        Part("topics", ", ".join(found.topics)),
    )
    return ShownCell(parts, failure, cell.answer_tokens)


def _totals(sheet: Sheet, number: int) -> ColumnTotals:
    cells, column = list(sheet.cells(number)), sheet.columns[number]
    schema = column.run.manner.schema  # an answer that does not follow it is an error
    return ColumnTotals(
        column,
        num_answers=len(cells),
        num_failed=sum(cell.error is not None for cell in cells),
        num_parsed=sum(cell.error is None if schema else cell.description is not None for cell in cells),
        completion_tokens=column.answer_tokens,
    )


def _choices(sheet: Sheet, names_of: Callable[[Cell], tuple[str, ...]]) -> list[Choice]:
    """Return what can be filtered by, most frequent first."""
    counts = Counter(
        name
        for row in sheet.rows
        for name in {_shown(name) for cell in row.cells if cell for name in names_of(cell)}
        if name
    )
    return [Choice(*item) for item in counts.most_common(_MAX_CHOICES)]


def _activity(cell: Cell) -> tuple[str, ...]:
    return (cell.description.activity,) if cell.description is not None else ()


def _shown(name: str) -> str:
    """Return an application or activity as it is counted: without case and white space that says nothing."""
    return normalised(name).casefold()[:200]


def _colours(sheet: Sheet) -> dict[str, int]:
    """Give the most frequent activities a colour each; all others share the last."""
    names = [choice.name for choice in _choices(sheet, _activity)]
    return {name: min(number, _NUM_COLOURS) for number, name in enumerate(names)}


def _timelines(sheet: Sheet, colours: dict[str, int]) -> Iterator[Timeline]:
    for recording in sorted({row.recording for row in sheet.rows}):
        rows = [row for row in sheet.rows if row.recording == recording]
        for number, column in enumerate(sheet.columns):
            bars = _bars(rows, number, colours)
            if bars:
                yield Timeline(recording, column.label, bars)


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
            colour = colours.get(name, _NUM_COLOURS)
            bars.append(Bar(start, width, colour, name, clock(row.timestamp_s), _place(row)))
    return tuple(bar for bar in bars if bar.activity)


def clock(seconds: float) -> str:
    """Return a time in a recording: 1:05, 2:03:09."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


class Pictures:
    """The thumbnails and token counts of frames that manifests of some recordings name.

    Asked by key, not by index: a recording may have been encoded again since with other frames. A frame
    that no manifest names any more is looked up in the store.
    """

    def __init__(self, home: Home, recordings: set[str]) -> None:
        self._thumbnails = Thumbnails(home)
        self._known: dict[str, tuple[PixelDigest, int]] = {}
        self._store = _store_or_none(home)
        for ref in list_manifests(home, lambda _: None) if home.store.is_dir() else []:
            if ref.recording.id in recordings:
                self._take(ref.path)

    def picture(self, key: str) -> bytes | None:
        """Return the WebP thumbnail of the frame of a key; ``None`` when there is none."""
        known = self._find(key)
        return None if known is None else self._thumbnails.read(known[0])

    def num_tokens(self, key: str) -> int:
        """Return how many merged tokens the entry has; 0 when it is gone."""
        known = self._find(key)
        return 0 if known is None else known[1]

    def _take(self, manifest: Path) -> None:
        try:
            frames = read_manifest(manifest).frames
        except StoreError:
            return
        self._known.update({frame.key.hex: (frame.pixels, frame.num_tokens) for frame in frames})

    def _find(self, key: str) -> tuple[PixelDigest, int] | None:
        if key not in self._known and self._store is not None:
            try:
                info = self._store.entry_info(EntryKey.from_hex(key))
            except (ValueError, SeeonceError):
                info = None
            if info is not None:
                self._known[key] = (info.pixels, info.num_tokens)
        return self._known.get(key)


def _store_or_none(home: Home) -> Store | None:
    try:
        return Store.open(home, create=False)
    except SeeonceError:
        return None
