"""Sizes and times as people read and write them."""

import re

from cache.errors import InputError

_UNITS = {"": 1, "B": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", re.IGNORECASE)
_AGE_S = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE = re.compile(r"(\d{1,9}(?:\.\d+)?)([hdw])", re.IGNORECASE)


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
