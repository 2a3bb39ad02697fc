"""Who shows the user how work goes."""


class Listener:
    """Shows how work goes; this one shows nothing."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def show(self, what: str, unit: str, num_done: int, num_all: int, note: str = "") -> None:
        """Take note of how far some work is."""
