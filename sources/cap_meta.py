"""What ``recording-meta.json`` of a Cap bundle says: name, date, and the videos of the screen.

Owns the shapes that Cap has written over the years:

    {"segments": [{"display": {"path": …}}, …], "status": {"status": "Complete"}}    studio, today
    {"display": {"path": …}, "segments": [{"start": 0.0, "end": 9.5}]}               one segment, 2024
    {"fps": 30, "sample_rate": 48000}                                               instant mode
    {"recording": true} or {"error": "…"}                                           instant, not complete

Source: `RecordingMeta` of Cap (github.com/CapSoftware/Cap, crates/project). Opens no video.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.errors import InputError
from sources.recording import printable

META = "recording-meta.json"

_INSTANT_VIDEO = "content/output.mp4"  # the meta file of an instant recording does not name it
_MAX_BYTES = 16_000_000  # a real one has kilobytes
_UNIX_SINCE_S = 1_000_000_000.0  # Cap has written start_time in Unix seconds, and from the recording's start
_UNIX_UNTIL_S = 100_000_000_000.0

# "Cap 2024-11-15 at 16.35.36", "Built-in Display (Display) 2026-11-21 04:32 PM"
_DATE = re.compile(
    r"""(?<![0-9])(20[0-9]{2})-([0-9]{2})-([0-9]{2})(?:\s+at\s+|[\sT_]+)
        ([0-9]{1,2})[.:]([0-9]{2})(?:[.:]([0-9]{2}))?(?![0-9])(?:\s*([AaPp])[Mm])?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class CapMeta:
    """One bundle. ``displays`` are paths as they were written; ``captured_s`` are Unix seconds if told."""

    name: str
    captured_s: float | None
    displays: tuple[str, ...]


def read_meta(bundle: Path) -> CapMeta:
    """Read a bundle's meta file.

    Raises:
        InputError: There is none, it makes no sense, or the bundle is not finished.
    """
    document = _document(bundle / META)
    _require_finished(document, bundle)
    displays = _displays(document)
    if not displays:
        raise InputError(
            f"{printable(bundle / META)}: names no video of a screen; expected segments[].display.path"
        )
    name = document.get("pretty_name")
    title = name if isinstance(name, str) and name.strip() else bundle.stem
    return CapMeta(title, _captured_s(document, title), displays)


def _document(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read ({error.strerror}); a Cap bundle has this file"
        ) from error
    try:
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES:,} bytes")
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{printable(path)}: not what Cap writes ({printable(reason)})") from error
    return document


def _require_finished(document: dict[str, object], bundle: Path) -> None:
    status = _child(document, "status").get("status")
    if status == "InProgress" or document.get("recording") is True:
        raise InputError(
            f"{printable(bundle)}: still being recorded; stop it in Cap, or open it there once if Cap crashed"
        )


def _displays(document: dict[str, object]) -> tuple[str, ...]:
    """List the videos of the screen, in order."""
    segments = document.get("segments")
    several = [_display(segment) for segment in segments] if isinstance(segments, list) else []
    if any(several):
        return tuple(path or "" for path in several)
    single = _display(document)
    if single:
        return (single,)
    instant = "fps" in document or "error" in document or "recording" in document
    return (_INSTANT_VIDEO,) if instant else ()


def _display(segment: object) -> str | None:
    """Give the path, with the separators that it has on every system."""
    path = _child(_child({"segment": segment}, "segment"), "display").get("path")
    return path.replace("\\", "/") if isinstance(path, str) else None


def _child(document: dict[str, object], name: str) -> dict[str, object]:
    """Give an object inside, empty when there is none."""
    child = document.get(name)
    return child if isinstance(child, dict) else {}


def _captured_s(document: dict[str, object], name: str) -> float | None:
    """Say when it was recorded: by the first segment's clock, else by the name, in local time."""
    segments = document.get("segments")
    first = segments[0] if isinstance(segments, list) and segments else document
    start = _child(_child({"segment": first}, "segment"), "display").get("start_time")
    if isinstance(start, int | float) and _UNIX_SINCE_S <= start <= _UNIX_UNTIL_S:
        return float(start)
    match = _DATE.search(name)
    return _local_s(match) if match else None


def _local_s(match: re.Match[str]) -> float | None:
    """Give Unix seconds of a date and time in a name; None when no calendar knows it."""
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    half = (match[7] or "").lower()
    if half and not 1 <= hour <= 12:
        return None
    hour = hour % 12 + 12 * (half == "p") if half else hour
    try:
        return datetime(year, month, day, hour, minute, second).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return None
