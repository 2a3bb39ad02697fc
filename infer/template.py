"""Placeholders in a prompt: ``{timestamp}``, ``{frame}``, ``{recording}``; everything else stays as written.

So JSON, code and other braces may stand in a prompt. What is put in is never looked at again.
"""

import re
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"\{(timestamp|frame|recording)\}")


@dataclass(frozen=True, slots=True)
class Place:
    """What the placeholders stand for; texts, since several frames give a range."""

    timestamp: str
    frame: str
    recording: str


def render(text: str, place: Place) -> str:
    """Put ``place`` into a template."""
    values = {"timestamp": place.timestamp, "frame": place.frame, "recording": place.recording}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def clock(seconds: float) -> str:
    """Return a time as people read it: 0:42, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
