"""What the store saved: how often a picture would have been encoded, had each answer encoded its own."""

from collections.abc import Callable
from dataclasses import dataclass

from seeonce.runs.sheet import Sheet


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
