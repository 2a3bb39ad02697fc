"""What a command shows on standard error while it works: lines, and one bar at a time."""

import sys
from typing import TYPE_CHECKING

import typer

from cache.base.listener import Listener

if TYPE_CHECKING:
    from tqdm import tqdm


class Terminal(Listener):
    """Shows how work goes; use as a context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._shown = ""  # what the bar is about, if it was drawn when the first of it was done

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._shown:
            self._end()
        typer.echo(line, err=True)

    def begin(self, num_all: int, what: str, unit: str) -> None:
        """Draw a bar over so many."""
        self._end()
        self._bar = _bar(num_all, unit, what)

    def advance(self, num_done: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(num_done)

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        """Move the bar of some work, drawn with the first of it and ended with the last."""
        if self._bar is None and self._shown == what and num_done == num_all:
            return
        if self._bar is None or self._shown != what:
            self._end()
            self._bar, self._shown = _bar(num_all, unit, what), what
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(num_done - self._bar.n)
        if num_done == num_all:
            self._bar.close()
            self._bar = None

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._shown = None, ""


def _bar(total: int, unit: str, what: str) -> "tqdm[None]":
    """Return a bar over ``total`` units; into a file, where every state stays, it is drawn rarely."""
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    scaled = unit == "B"  # bytes are shown as MB and MB/s
    return tqdm(total=total, unit=unit, unit_scale=scaled, file=sys.stderr, desc=what, mininterval=interval_s)
