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
        self._shown = ""  # what the last bar was about, if no line came after it

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._shown:
            self._end()
        typer.echo(line, err=True)

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
