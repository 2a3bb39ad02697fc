"""Sizes, ages and paths as users write them, and text made safe to print."""

import os
import re
from pathlib import Path

from cache.base.errors import InputError

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", re.IGNORECASE)
_AGE_S = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE = re.compile(r"(\d{1,9}(?:\.\d+)?)([hdw])", re.IGNORECASE)
STANDARD_OUTPUT = Path("-")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Controls but tab and newline; marks and overrides of direction; lone surrogates; invisible separators.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def megabytes(num_bytes: int) -> str:
    """Return a number of bytes in words: "41.8 MB", "7.6 GB", "12.3 kB"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB" if num_bytes else "0 kB"


def parse_size(text: str, what: str) -> int:
    """Read a number of bytes: "50GB", "1.5 TB", "500M", "64GiB". ``what`` names the setting in messages.

    Raises:
        InputError: for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} is {text!r}: expected a size such as 50GB or 500MB")
    unit = (match[2] or "").upper()
    factor = 1024 ** ("KMGT".index(unit) + 1) if match[3] else _UNITS[unit]
    return int(float(match[1]) * factor)


def parse_age_s(text: str, what: str) -> float:
    """Read an age in seconds: "30d", "12h", "2w".

    Raises:
        InputError: for anything else.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} is {text!r}: expected an age such as 30d, 12h or 2w")
    return float(match[1]) * _AGE_S[match[2].lower()]


def user_path(text: str | Path) -> Path:
    """Return the path, ``~`` being the user's home; that of a user who is not there stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError there)


def output_path(path: Path, option: str) -> Path:
    """Return where a user wants a file, as ``user_path`` does.

    Raises:
        InputError: it is ``-``, which means standard output elsewhere and is not written here.
    """
    if path == STANDARD_OUTPUT:
        raise InputError(f"{option} - is no file: name one, as in {option} ./-")
    return user_path(path)


def printable(path: Path | str) -> str:
    """Give a path as one line of valid Unicode: what no terminal or JSON file takes is escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(path))


def visible(text: str) -> str:
    """Return a text in which every hidden character is shown by its number, as in ``[U+202E]``."""
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n"))


def _named(match: re.Match[str]) -> str:
    return f"[U+{ord(match[0]):04X}]"


def percent(share: float | None) -> str:
    """Return a share in percent that says 100 % only when it is all, and 0 % only when it is nothing."""
    if share is None:
        return "–"
    if 0 < share < 0.01 or 0.99 < share < 1:
        return f"{min(max(100 * share, 0.1), 99.9):.1f} %"
    return f"{100 * share:.0f} %"


def counted(number: int, what: str) -> str:
    """Return a number of things: 1 frame, 2 frames, 3 entries."""
    if number == 1:
        return f"1 {what}"
    return f"{number:,} {what[:-1]}ies" if what.endswith("y") else f"{number:,} {what}s"
