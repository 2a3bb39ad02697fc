"""``seeonce recordings``: options and the printed form."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from cache.base.home import Home
from seeonce.commands.arguments import warn
from sources.recording import RecordingListing
from sources.recordings import known_recordings


def recordings_command(
    since: Annotated[str | None, typer.Option(help="Only those since: 2d, 12h, or a date.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
) -> None:
    """List recordings, newest first, and what is encoded.

    Example: SEEONCE_RECORDINGS=~/Recordings seeonce recordings --since 2d
    """
    known = known_recordings(Home.locate(), os.environ, warn, since)
    if as_json:
        typer.echo(json.dumps([asdict(recording) for recording in known], default=str))
        return
    if not known:
        age = f" since {since}" if since else ""
        typer.echo(f"No recordings{age}: set SEEONCE_RECORDINGS to their folder, or run seeonce encode demo.")
    for recording in known:
        typer.echo(_line(recording))


def _line(recording: RecordingListing) -> str:
    encoded = "; ".join(
        f"{e.num_encoded} encoded under {e.encoder_id[:12]} ({e.compute_dtype}, <= {e.max_pixels:,} pixels)"
        for e in recording.encodings
    )
    gone = "" if recording.is_there else "no frame can be read, "
    num_frames = "?" if recording.num_frames is None else str(recording.num_frames)
    return (
        f"{recording.id:<32} {recording.kind:<9} {recording.captured_at[:19]:<20} "
        f"{_length(recording.length_s):>8} {num_frames:>6} frames  {gone}{encoded or 'not encoded'}"
    )


def _length(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
