"""Text of unknown origin, made visible: characters that draw nothing, or turn the line, get a name."""

import re

# Controls but tab and newline; marks and overrides of direction; lone surrogates; invisible separators.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return a text in which every hidden character is shown by its number, as in ``[U+202E]``."""
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n"))


def _named(match: re.Match[str]) -> str:
    return f"[U+{ord(match[0]):04X}]"
