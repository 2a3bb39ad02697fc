"""Pass two on a terminal: lines and one bar on standard error, results kept for the table."""

from typing import TYPE_CHECKING

import typer

from seeonce.commands.progress import progress_bar
from seeonce.runs.run import Result

if TYPE_CHECKING:
    from tqdm import tqdm


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
