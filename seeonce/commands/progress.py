"""The progress bar of long work on standard error, for whichever command shows one."""

import sys
from typing import TYPE_CHECKING

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
