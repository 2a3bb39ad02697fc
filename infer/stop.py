"""Stop strings: an answer ends before the first of them, wherever tokens begin and end.

Owns noticing that one is complete, token by token, and cutting the text.
"""

from collections import deque
from collections.abc import Callable, Sequence

_PARTIAL = 4  # tokens that may hold the other bytes of the first character looked at


class StopWatch:
    """Ends one request with "stop" when a stop string is complete."""

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """Look for ``stop`` in what ``decode`` makes of tokens.

        A token has at least one byte, so as many tokens as the longest has bytes are enough. Special tokens,
        which have none, may hide one from here; ``before_stop`` finds it in the whole text.
        """
        self._stop, self._decode = tuple(stop), decode
        longest = max(len(text.encode()) for text in stop)
        self._tail: deque[int] = deque(maxlen=longest + _PARTIAL)

    def seen(self, token: int) -> str | None:
        """Take note of a token; "stop" ends the answer."""
        self._tail.append(token)
        text = self._decode(self._tail)
        return "stop" if any(stop in text for stop in self._stop) else None


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first stop string in it."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return text[: min(found)] if found else text
