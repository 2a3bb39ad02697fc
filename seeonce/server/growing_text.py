"""The text of an answer that still grows: what of it is certain enough to be shown."""

from collections.abc import Callable, Sequence

from infer.sampling import before_stop

_OPEN, _CLOSE = "<think>", "</think>"


class GrowingText:
    """Decodes tokens as they come; what is shown is always a beginning of the text that the answer will have.

    Held back are bytes of a character that is not whole, what may be the beginning of a stop string, and
    spaces at the end, which an answer is stripped of.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], *, plain: bool, opened: bool
    ) -> None:
        """Begin with no tokens; ``plain`` text is neither stripped nor searched for reasoning.

        ``opened`` tells that the prompt opened a block of reasoning.
        """
        self._decode, self._stop = decode, tuple(stop)
        self._plain, self._opened = plain, opened
        self._tokens: list[int] = []
        self._before = self._read = 0  # what was read since ``_before`` is decoded again with the next ones
        self._text = ""

    def add(self, tokens: Sequence[int]) -> None:
        """Take the next tokens."""
        self._tokens += tokens
        known = self._decode(self._tokens[self._before : self._read])
        text = self._decode(self._tokens[self._before :])
        if len(text) > len(known) and not text.endswith("\ufffd"):
            self._text += text[len(known) :]
            self._before, self._read = self._read, len(self._tokens)

    @property
    def shown(self) -> tuple[str, str]:
        """The reasoning and the answer, as far as they are certain."""
        text = before_stop(self._text, self._stop)
        if text == self._text:
            text = _without_beginning_of(self._stop, text)
        if self._plain:
            return "", text
        text = text.strip()
        if _OPEN.startswith(text):
            return "", ""
        if not self._opened and not text.startswith(_OPEN):
            return "", text
        reasoning, ended, answer = text.removeprefix(_OPEN).partition(_CLOSE)
        if not ended:
            reasoning = _without_beginning_of((_CLOSE,), reasoning)
        return reasoning.strip(), answer.strip()


def _without_beginning_of(words: Sequence[str], text: str) -> str:
    """Cut off the longest end of ``text`` with which one of ``words`` begins."""
    most = min(max(map(len, words), default=0) - 1, len(text))
    for length in range(most, 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return text[:-length]
    return text
