"""Runs laid side by side: a row a frame, a column for each prompt in each way that it was asked."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from seeonce.runs.find import EXPERIMENT_SEPARATOR, RECORDED
from seeonce.runs.run import Result, Run, one_per_request, prompt_order, request_of


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which prompts were asked: a model and settings, over any number of recordings.

    ``name`` is what the names of its runs have and those of other variants lack.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def is_recorded(self) -> bool:
        """Whether it is what was recorded, not an answer."""
        return self.runs[0].info.id == RECORDED


@dataclass(frozen=True, slots=True)
class Column:
    """One prompt in one variant; ``label`` tells it from the others of its sheet.

    ``prompt_number`` and ``variant_number`` count from 0. ``answer_tokens`` are those of its requests, each
    counted once however many frames it showed.
    """

    label: str
    prompt_number: int
    variant_number: int
    runs: tuple[Run, ...]
    prompt_id: str
    prompt: str
    answer_tokens: int

    @property
    def prompt_label(self) -> str:
        """The letters of its prompt, whatever the variant."""
        return _letters(self.prompt_number)

    @property
    def title(self) -> str:
        """The prompt, after the name that an experiment gave it."""
        for run in self.runs:
            named = dict(zip(run.info.prompts, run.info.prompt_names, strict=False))
            if self.prompt in named:
                return f"{named[self.prompt]}: {self.prompt}"
        return self.prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One frame, with a cell for each column, ``None`` where a run has no answer.

    A cell is what one prompt of one run said of the frame; what was cut there ends by "length".
    """

    recording: str
    frame: int
    timestamp_s: float
    source: str
    key: str
    cells: tuple[Result | None, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Columns by prompt and then by variant, rows by recording and frame."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    variants: tuple[Variant, ...] = ()

    def cells(self, column: int) -> Iterator[Result]:
        """Yield the answers of one column, from top to bottom."""
        for row in self.rows:
            cell = row.cells[column]
            if cell is not None:
                yield cell


def make_sheet(runs: Sequence[Run]) -> Sheet:
    """Lay runs side by side; a frame is the same frame when recording and index are.

    Runs that asked with one model and the same settings about different recordings share their columns.
    """
    prompts: dict[str, int] = {}
    variants: dict[object, int] = {}
    found: dict[tuple[int, int], list[tuple[Run, list[Result]]]] = {}
    asked_before = Counter[object]()
    for run in runs:
        asked: dict[str, list[Result]] = {}
        for answer in sorted(run.answers, key=prompt_order(run.info.prompts)):
            asked.setdefault(answer.prompt, []).append(answer)
        for prompt, answers in asked.items():
            way = (run.info.model, run.info.sampling, run.info.showing)
            once_more = (way, prompt, answers[0].recording)
            variant = variants.setdefault((way, asked_before[once_more]), len(variants))
            asked_before[once_more] += 1
            number = prompts.setdefault(prompt, len(prompts))
            found.setdefault((number, variant), []).append((run, answers))
    num_asked = len(variants) - any(run.info.id == RECORDED for run in runs)
    columns: list[Column] = []
    cells: dict[tuple[str, int], dict[int, Result]] = {}
    for (number, variant), parts in sorted(found.items(), key=lambda item: item[0]):
        answer = parts[0][1][0]
        label = _letters(number) + (str(variant + 1) if num_asked > 1 else "")
        tokens = sum(
            each.usage.completion_tokens for _, answers in parts for each in one_per_request(answers)
        )
        runs_of_it = tuple(run for run, _ in parts)
        for _, answers in parts:
            _fill_cells(answers, len(columns), cells)
        columns.append(Column(label, number, variant, runs_of_it, answer.prompt_id, answer.prompt, tokens))
    rows = tuple(_row(cells[place], len(columns)) for place in sorted(cells))
    return Sheet(tuple(columns), rows, tuple(_variants(columns, len(variants))))


def _fill_cells(
    answers: Sequence[Result], column: int, cells: dict[tuple[str, int], dict[int, Result]]
) -> None:
    """Put the answers of one prompt of one run into their cells."""
    # Of frames that were shown together, the last that the answer speaks of was cut, those before it not.
    last = {request_of(answer): answer.frame for answer in answers if answer.error is None}
    for answer in answers:
        row = cells.setdefault((answer.recording, answer.frame), {})
        if answer.was_cut and answer.frame != last.get(request_of(answer)):
            answer = replace(answer, finish_reason="")
        row[column] = _joined(row.get(column), answer)


def _variants(columns: Sequence[Column], num_variants: int) -> Iterator[Variant]:
    """Name each variant by the parts that the names of all its runs have and not all other runs' do."""
    every = [run for column in columns for run in column.runs]
    shared = set.intersection(*(set(_name_parts(run)) for run in every)) if every else set()
    for number in range(num_variants):
        runs = {
            run.info.id: run for column in columns if column.variant_number == number for run in column.runs
        }
        own = set.intersection(*(set(_name_parts(run)) for run in runs.values())) - shared
        first = next(iter(runs.values()))
        yield Variant(
            EXPERIMENT_SEPARATOR.join(part for part in _name_parts(first) if part in own),
            tuple(runs.values()),
        )


def _name_parts(run: Run) -> list[str]:
    return [part for part in run.info.name.split(EXPERIMENT_SEPARATOR) if part]


def _joined(earlier: Result | None, cell: Result) -> Result:
    """Put two answers about one frame into one cell: a frame may stand in several requests of a prompt."""
    if earlier is None or earlier.text == cell.text:
        return cell
    num_tokens = earlier.usage.completion_tokens + cell.usage.completion_tokens
    return replace(
        cell,
        text=f"{earlier.text}\n\n{cell.text}".strip(),
        parsed=earlier.parsed if earlier.description else cell.parsed,
        error=earlier.error or cell.error,
        finish_reason=earlier.finish_reason if earlier.was_cut else cell.finish_reason,
        usage=replace(cell.usage, completion_tokens=num_tokens),
    )


def _row(found: dict[int, Result], num_columns: int) -> Row:
    first = found[min(found)]
    cells = tuple(found.get(number) for number in range(num_columns))
    return Row(first.recording, first.frame, first.timestamp_s, first.source, first.key, cells)


def _letters(number: int) -> str:
    rest, letter = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("A") + letter)


@dataclass(frozen=True, slots=True)
class Savings:
    """Encodings that were needed once in pass one, and those that answers would have repeated.

    Tokens are merged tokens, those that the language model sees of a picture. ``of_columns`` are the
    encodings of each column, of pictures that no column before it had.
    """

    num_answers: int
    num_encodings: int
    num_tokens_saved: int
    of_columns: tuple[int, ...]

    @property
    def num_saved(self) -> int:
        """How many answers needed no encoding."""
        return self.num_answers - self.num_encodings


def savings_of(sheet: Sheet, num_tokens_of: Callable[[str], int]) -> Savings:
    """Count encodings over all columns, from left to right; errors needed no encoding."""
    seen: set[str] = set()
    tokens: dict[str, int] = {}
    num_answers = num_tokens = 0
    of_columns = []
    for number in range(len(sheet.columns)):
        keys = [
            row.key for row in sheet.rows if (cell := row.cells[number]) is not None and cell.error is None
        ]
        fresh = set(keys) - seen
        seen |= fresh
        for key in keys:
            tokens[key] = tokens[key] if key in tokens else num_tokens_of(key)
            num_tokens += tokens[key]
        num_tokens -= sum(tokens[key] for key in fresh)
        num_answers += len(keys)
        of_columns.append(len(fresh))
    return Savings(num_answers, len(seen), num_tokens, tuple(of_columns))
