"""``--since``: a time from what a user types, and whether a recording was made after it."""

import re
from datetime import UTC, datetime, timedelta

from cache.errors import InputError

_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """Read ``2d``, ``12h``, ``30m``, ``1w``, or a date or time in ISO 8601 (local unless it says).

    Raises:
        InputError: it is none of these.
    """
    try:
        if ago := _AGO.fullmatch(text.strip().lower()):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"--since is {text!r}; expected an age as in 2d, 12h, 30m or 1w, or a date as in 2026-11-20"
        ) from None


def is_since(captured_at: str, since: datetime) -> bool:
    """Tell whether a recording was made at or after a time; one of unknown time was not."""
    try:
        made = datetime.fromisoformat(captured_at)
    except ValueError:
        return False
    return (made if made.tzinfo else made.replace(tzinfo=UTC)) >= since
