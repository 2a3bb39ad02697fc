"""``seeonce store …``: what the store says about itself on the command line.

Owns: options and the printed form. Does not own: the numbers (``cache.stats``).
"""

from dataclasses import asdict
from typing import Annotated

import typer

from cache.canonical_json import canonical
from cache.home import Home
from cache.sizes import megabytes
from cache.stats import StoreStats, store_stats

app = typer.Typer(help="Look after the embedding store.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """Look after the embedding store."""


@app.command()
def stats(
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show how many entries the store holds, of which encoders, and what sharing saves.

    Example: seeonce store stats --json
    """
    home = Home.locate()
    found = store_stats(home)
    for warning in home.warnings():
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(stats_as_json(found) if json else stats_as_table(home, found))


def stats_as_json(stats: StoreStats) -> str:
    """Return the numbers as one line of JSON."""
    encoders = [{**asdict(row), "encoder_id": row.encoder_id.hex} for row in stats.encoders]
    return canonical({**asdict(stats), "encoders": encoders}).decode("ascii")


def stats_as_table(home: Home, stats: StoreStats) -> str:
    """Return the numbers for a human."""
    rows = [
        ("store", str(home.store)),
        ("entries", f"{stats.num_entries:,} ({megabytes(stats.num_bytes)})"),
        ("recordings", f"{stats.num_recordings:,}"),
        ("frames", f"{stats.num_frames:,} named, {stats.num_shared:,} shared"),
        ("saved by sharing", megabytes(stats.num_bytes_saved)),
        ("named by no recording", f"{stats.num_unreferenced:,}"),
        ("in quarantine", f"{stats.num_quarantined:,}"),
        ("unfinished or left over", f"{stats.num_tmp:,}"),
        ("free on the disk", megabytes(stats.free_bytes)),
    ]
    for row in stats.encoders:
        name = f"encoder {row.encoder_id.hex[:12]}"
        rows.append((name, f"{row.num_entries:,} ({megabytes(row.num_bytes)}), {row.label}"))
    return "\n".join(f"{name:<24}{value}" for name, value in rows)
