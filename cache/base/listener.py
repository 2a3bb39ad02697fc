"""Who shows the user how work goes."""


class Listener:
    """Shows how work goes; this one shows nothing."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_all: int, what: str, unit: str) -> None:
        """Take note of what comes next, and how much of it."""

    def advance(self, num_done: int = 1) -> None:
        """Take note of what is done."""

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        """Take note of how far some work is that is often done at once; ``begin`` is not called for it."""
