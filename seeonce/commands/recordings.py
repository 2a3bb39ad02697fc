"""``seeonce recordings``: options and the printed form."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cache.base.home import Home
from seeonce.commands.arguments import AsJson, terminal_width, warn
from seeonce.commands.table import aligned, local_time
from seeonce.runs.prompts import clock
from sources.recording import RecordingListing
from sources.recordings import known_recordings


def recordings_command(
    since: Annotated[str | None, typer.Option(help="Only those since: 2d, 12h, or a date.")] = None,
    as_json: AsJson = False,
) -> None:
    """List recordings, newest first, and what is encoded.

    Example: SEEONCE_RECORDINGS=~/Recordings seeonce recordings --since 2d
    """
    known = known_recordings(Home.locate(), warn, since)
    if as_json:
        typer.echo(json.dumps([asdict(recording) for recording in known], default=str))
        return
    if not known:
        age = f" since {since}" if since else ""
        typer.echo(f"No recordings{age}: set SEEONCE_RECORDINGS to their folder, or run seeonce encode demo.")
    typer.echo(aligned(_HEAD, map(_row, known), list(map(_encoded, known)), terminal_width()), nl=bool(known))


_HEAD = ("id", "kind", "captured", "length", "frames")


def _row(recording: RecordingListing) -> tuple[str, ...]:
    return (
        recording.id,
        recording.kind,
        local_time(recording.captured_at),
        "–" if recording.length_s is None else clock(recording.length_s),
        "–" if recording.num_frames is None else str(recording.num_frames),
    )


def _encoded(recording: RecordingListing) -> str:
    gone = [] if recording.is_there else ["no frame can be read"]
    found = [
        f"{e.num_encoded} encoded under {e.encoder_id[:12]} ({e.compute_dtype}, <= {e.max_pixels:,} pixels)"
        for e in recording.encodings
    ]
    return "; ".join([*gone, *(found or ["not encoded"])])
