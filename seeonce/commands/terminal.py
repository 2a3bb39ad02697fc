"""Pass two on a terminal: lines and one bar on standard error, results kept for the table."""

import sys
from typing import TYPE_CHECKING

import typer

from seeonce.runs.run import Result

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, unit: str, what: str) -> "tqdm[None]":
    """Return a bar over ``total`` units; into a file, where every state stays, it is drawn rarely."""
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    scaled = unit == "B"  # bytes are shown as MB and MB/s
    return tqdm(total=total, unit=unit, unit_scale=scaled, file=sys.stderr, desc=what, mininterval=interval_s)


class LateBar:
    """A bar that is drawn when the first progress is told, and so not at all for what is done at once."""

    def __init__(self, unit: str, what: str) -> None:
        self._unit, self._what = unit, what
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "LateBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the bar as it is; what is told after this gets a bar of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, num_done: int, num_all: int, note: str = "") -> None:
        """Move the bar to so many of so many."""
        if self._bar is None:
            self._bar = progress_bar(num_all, self._unit, self._what)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(num_done - self._bar.n)


class Terminal:
    """Shows pass two on the terminal: lines and one bar on standard error, rows kept for a table."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        typer.echo(line, err=True)

    def begin(self, num_results: int, what: str = "describe", unit: str = "answer") -> None:
        """Start a bar over so many results."""
        self.__exit__()
        self._bar = progress_bar(num_results, unit, what)

    def advance(self, num_done: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(num_done)

    def result(self, result: Result) -> None:
        """Keep an answer for the table, and move the bar."""
        self.results.append(result)
        self.advance()
