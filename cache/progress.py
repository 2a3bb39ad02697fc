"""The progress bar of long work on standard error, for whichever command shows one."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, unit: str, what: str) -> "tqdm[None]":
    """Return a bar over ``total`` units; into a file, where every state stays, it is drawn rarely."""
    from tqdm import tqdm

    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, file=sys.stderr, desc=what, mininterval=interval_s)
