"""``seeonce recordings``: options and the printed form. Owns no work: that is ``sources.listing``."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

from cache.home import Home
from sources.listing import KnownRecording, known_recordings


def recordings_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
) -> None:
    """List the recordings there are, newest first, and how much of each is encoded.

    Example: SEEONCE_RECORDINGS=~/Recordings seeonce recordings
    """
    known = known_recordings(Home.locate(), os.environ)
    if as_json:
        typer.echo(json.dumps([asdict(recording) for recording in known]))
        return
    if not known:
        typer.echo("No recordings: set SEEONCE_RECORDINGS to their folder, or run seeonce encode demo.")
    for recording in known:
        typer.echo(_line(recording))


def _line(recording: KnownRecording) -> str:
    num_frames = "?" if recording.num_frames is None else str(recording.num_frames)
    encoded = "; ".join(
        f"{e.num_encoded} encoded under {e.encoder_id[:12]} ({e.compute_dtype}, <= {e.max_pixels:,} pixels)"
        for e in recording.encodings
    )
    return (
        f"{recording.id:<32} {recording.kind:<7} {recording.captured_at[:19]:<20} {num_frames:>6} frames  "
        f"{encoded or 'not encoded'}"
    )
