"""Runs laid side by side: a row a frame, a column for each prompt of each run."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from seeonce.runs.parse import Description
from seeonce.runs.run import Result, as_asked
from seeonce.runs.runs import Run, RunSummary, request_of, requests


@dataclass(frozen=True, slots=True)
class Cell:
    """What one prompt of one run said of one frame; ``was_cut`` tells that it ends where its tokens did."""

    text: str
    description: Description | None
    error: str | None
    was_cut: bool
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Column:
    """One prompt of one run; ``label`` tells it from the others of its sheet.

    ``answer_tokens`` are those of its requests, each counted once however many frames it showed.
    """

    label: str
    run: RunSummary
    prompt_id: str
    prompt: str
    answer_tokens: int

    @property
    def title(self) -> str:
        """The prompt, after the name that an experiment gave it."""
        named = dict(zip(self.run.prompts, self.run.prompt_names, strict=False))
        return f"{named[self.prompt]}: {self.prompt}" if self.prompt in named else self.prompt

    @property
    def asked_with(self) -> str:
        """What tells it from the same prompt asked otherwise; empty when it was asked as usual."""
        return str(self.run.manner)


@dataclass(frozen=True, slots=True)
class Row:
    """One frame, with a cell for each column, ``None`` where a run has no answer."""

    recording: str
    frame: int
    timestamp_s: float
    source: str
    key: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows in the order of recording and frame."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def cells(self, column: int) -> Iterator[Cell]:
        """Yield the answers of one column, from top to bottom."""
        for row in self.rows:
            cell = row.cells[column]
            if cell is not None:
                yield cell


def make_sheet(runs: Sequence[Run]) -> Sheet:
    """Lay runs side by side; a frame is the same frame when recording and index are."""
    columns: list[Column] = []
    cells: dict[tuple[str, int], dict[int, Cell]] = {}
    first: dict[tuple[str, int], Result] = {}
    for run in runs:
        own: dict[str, int] = {}
        tokens = Counter[str]()
        for answer in requests(run.answers):
            tokens[answer.prompt_id] += answer.usage.completion_tokens
        # Of frames that were shown together, the last that the answer speaks of was cut, those before it not.
        last = {request_of(answer): answer.frame for answer in run.answers if answer.error is None}
        for answer in sorted(run.answers, key=as_asked(run.info.prompts)):
            if answer.prompt_id not in own:
                own[answer.prompt_id] = len(columns)
                columns.append(_column(len(columns), run, answer, tokens[answer.prompt_id]))
        for answer in run.answers:
            place = (answer.recording, answer.frame)
            first.setdefault(place, answer)
            row = cells.setdefault(place, {})
            number = own[answer.prompt_id]
            was_cut = answer.finish_reason == "length" and answer.frame == last.get(request_of(answer))
            row[number] = _joined(row.get(number), _cell(answer, was_cut=was_cut))
    rows = tuple(_row(first[place], cells[place], len(columns)) for place in sorted(cells))
    return Sheet(tuple(columns), rows)


def _cell(answer: Result, *, was_cut: bool) -> Cell:
    return Cell(
        answer.text,
        answer.description,
        answer.error,
        was_cut,
        answer.usage.completion_tokens,
    )


def _joined(earlier: Cell | None, cell: Cell) -> Cell:
    """Put two answers about one frame into one cell: a frame may stand in several requests of a prompt."""
    if earlier is None or earlier.text == cell.text:
        return cell
    return Cell(
        f"{earlier.text}\n\n{cell.text}".strip(),
        earlier.description or cell.description,
        earlier.error or cell.error,
        earlier.was_cut or cell.was_cut,
        earlier.answer_tokens + cell.answer_tokens,
    )


def _row(answer: Result, found: dict[int, Cell], num_columns: int) -> Row:
    cells = tuple(found.get(number) for number in range(num_columns))
    return Row(answer.recording, answer.frame, answer.timestamp_s, answer.source, answer.key, cells)


def _column(number: int, run: Run, answer: Result, answer_tokens: int) -> Column:
    """Name a column A, B, …, Z, AA, AB, …: short enough for a heading and for a sentence."""
    return Column(_letters(number), run.info, answer.prompt_id, answer.prompt, answer_tokens)


def _letters(number: int) -> str:
    rest, letter = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("A") + letter)


@dataclass(frozen=True, slots=True)
class ColumnCost:
    """What one column needed of the vision encoder: ``num_encodings`` of pictures no column before had."""

    label: str
    num_answers: int
    num_encodings: int


@dataclass(frozen=True, slots=True)
class Savings:
    """Encodings that were needed once in pass one, and those that answers would have repeated.

    Tokens are merged tokens, those that the language model sees of a picture.
    """

    num_answers: int
    num_encodings: int
    num_saved: int
    num_tokens_saved: int
    columns: tuple[ColumnCost, ...]


def savings_of(sheet: Sheet, num_tokens_of: Callable[[str], int]) -> Savings:
    """Count encodings over all columns, from left to right; errors needed none."""
    seen: set[str] = set()
    tokens: dict[str, int] = {}
    num_tokens = 0
    columns = []
    for number, column in enumerate(sheet.columns):
        keys = [
            row.key for row in sheet.rows if (cell := row.cells[number]) is not None and cell.error is None
        ]
        fresh = set(keys) - seen
        seen |= fresh
        for key in keys:
            tokens[key] = tokens[key] if key in tokens else num_tokens_of(key)
            num_tokens += tokens[key]
        num_tokens -= sum(tokens[key] for key in fresh)
        columns.append(ColumnCost(column.label, len(keys), len(fresh)))
    num_answers = sum(column.num_answers for column in columns)
    return Savings(num_answers, len(seen), num_answers - len(seen), num_tokens, tuple(columns))
