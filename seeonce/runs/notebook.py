"""Answers as a table for notebooks: rows, lists of dictionaries, HTML, and pandas where it is installed."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from cache.base.errors import InputError
from cache.base.text import visible
from seeonce.runs.find import load_run

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """What one prompt said of one frame; an answer without a description has its fields empty."""

    recording: str
    frame: int
    timestamp_s: float
    source: str
    prompt: str
    text: str
    description: str
    activity: str
    apps: tuple[str, ...]
    topics: tuple[str, ...]
    error: str | None

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class AnswerTable(Sequence[AnswerRow]):
    """The answers of a run, by frame and then as they were asked."""

    def __init__(self, rows: Sequence[AnswerRow], run: Path) -> None:
        """``run`` is the folder of the run."""
        self.rows, self.run = tuple(rows), run

    @overload
    def __getitem__(self, at: int) -> AnswerRow: ...

    @overload
    def __getitem__(self, at: slice) -> "AnswerTable": ...

    def __getitem__(self, at: int | slice) -> "AnswerRow | AnswerTable":
        return AnswerTable(self.rows[at], self.run) if isinstance(at, slice) else self.rows[at]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[AnswerRow]:
        return iter(self.rows)

    def as_dicts(self) -> list[dict[str, object]]:
        """Return the rows as dictionaries, as ``pandas.DataFrame`` and ``csv.DictWriter`` take them."""
        return [row.as_dict() for row in self.rows]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as error:
            raise InputError("pandas is not installed: pip install pandas, or use as_dicts().") from error
        return pd.DataFrame(self.as_dicts())

    def __repr__(self) -> str:
        return f"<{len(self)} answers of {self.run.name}>"

    def _repr_html_(self) -> str:
        """Show the first rows in a notebook, every text as text."""
        head = ("frame", "timestamp_s", "prompt", "text")
        lines = ["".join(f"<th>{name}</th>" for name in head)]
        lines += [
            "".join(f"<td>{html.escape(visible(str(getattr(row, name))))}</td>" for name in head)
            for row in self.rows[:_SHOWN]
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table>{body}</table><p>{min(_SHOWN, len(self))} of {len(self)} answers</p>"


def read_table(run: Path) -> AnswerTable:
    """Read the answers of a run's folder."""
    rows = []
    for answer in load_run(run).answers:
        found = answer.description
        rows.append(
            AnswerRow(
                answer.recording,
                answer.frame,
                answer.timestamp_s,
                answer.source,
                answer.prompt,
                answer.text,
                found.description if found else "",
                found.activity if found else "",
                found.apps if found else (),
                found.topics if found else (),
                answer.error,
            )
        )
    return AnswerTable(rows, run)
