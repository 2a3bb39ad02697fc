"""Endless repetition: the same tokens over and over, as small models give on dense tables.

An answer is ended when its last tokens are one block, repeated exactly and often enough: ``span(period)``
tokens of it. Rows of a table that differ in one token never are; docs/decisions/021 says why these numbers.
"""

import numpy as np

LONGEST_PERIOD = 256
LEAST_SPAN = 96


def span(period: int) -> int:
    """Return how many tokens of a block of ``period`` tokens, repeated, are endless repetition."""
    return max(LEAST_SPAN, min(8 * period, max(256, 4 * period)))


# A run of tokens that equal the one a block before is one block shorter than what repeats.
_NEEDED = np.array([span(period) - period for period in range(1, LONGEST_PERIOD + 1)])


class RepetitionWatch:
    """Ends one request with "repetition". A step costs a comparison with the last 256 tokens."""

    def __init__(self) -> None:
        """Begin with no tokens."""
        self._last = np.full(LONGEST_PERIOD, -1, np.int64)  # the newest first
        self._runs = np.zeros(LONGEST_PERIOD, np.int64)

    def seen(self, token: int) -> str | None:
        """Take note of a token; "repetition" ends the answer."""
        self._runs = (self._runs + 1) * (self._last == token)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        return "repetition" if bool((self._runs >= _NEEDED).any()) else None
