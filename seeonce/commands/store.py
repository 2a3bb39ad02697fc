"""``seeonce store …``: what the store says about itself, and its upkeep.

Owns: options, progress and exit codes. Does not own: the work, nor its words (``store_text``).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cache.checking import Subset, check_store
from cache.collecting import Collection, collect
from cache.errors import EXIT_INTERRUPTED, EXIT_PARTLY, NotEncodedError
from cache.forgetting import (
    ToForget,
    find_recording_id,
    forget,
    forget_all,
    least_used,
    purge_runs,
)
from cache.home import Home
from cache.inventory import stored_entries
from cache.listing import stored_recordings, time_text
from cache.manifest import FrameEntry
from cache.repairing import Missing, repair
from cache.sizes import parse_age_s, parse_size
from cache.stats import StoreStats, store_stats
from cache.store import Store
from seeonce.commands.progress import LateBar
from seeonce.commands.store_text import (
    check_text,
    collection_text,
    entries_table,
    forgetting_text,
    forgotten_text,
    recordings_table,
    repair_text,
    stats_table,
)
from seeonce.runs.answer_cache import AnswerCache
from seeonce.runs.removal import remove_runs


def _encode_missing(missing: Missing) -> Iterator[tuple[FrameEntry, str | None]]:
    from precompute.again import encode_again  # imports mlx-vlm, which takes seconds

    yield from encode_again(missing)


def _remove_runs(home: Home, recording_id: str) -> int:
    """Remove the runs of a recording that is forgotten, and every answer that was kept of it."""
    with AnswerCache(home) as known:
        known.remove_recording(recording_id)
    return remove_runs(home, recording_id)


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")]

app = typer.Typer(help="Look after the embedding store.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """Look after the embedding store."""


@app.command()
def stats(as_json: AsJson = False) -> None:
    """Show how many entries the store holds, of which encoders, and what sharing saves.

    Example: seeonce store stats --json
    """
    home = Home.locate()
    found = store_stats(home)
    for warning in home.warnings():
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(stats_as_json(found) if as_json else stats_table(home, found))


@app.command("ls")
def list_command(
    entries: Annotated[bool, typer.Option(help="List entries instead of recordings.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is stored, the least recently used first: last use, frames, bytes, encoder.

    Example: seeonce store ls --entries
    """
    opened = Store.open(Home.locate(), create=False)
    found = sorted(stored_entries(opened.path), key=lambda entry: (entry.used_s, entry.key.raw))
    sizes = {entry.key: entry.num_bytes for entry in found}
    recordings = stored_recordings(opened.home)
    if not as_json:
        table = entries_table(found, recordings) if entries else recordings_table(recordings, sizes)
        typer.echo(table)
        return
    rows: list[dict[str, Any]] = [
        {"key": entry.key.hex, "num_bytes": entry.num_bytes, "used_at": time_text(entry.used_s)}
        for entry in (found if entries else [])
    ] or [
        {
            "recording": recording.id,
            "encoder_id": manifest.ref.encoder_id.hex,
            "num_frames": manifest.ref.num_frames,
            "num_entries": len(manifest.keys),
            "num_bytes": sum(sizes.get(key, 0) for key in manifest.keys),
            "used_at": time_text(manifest.used_s),
            "complete": manifest.ref.complete,
        }
        for recording in (recordings if not entries else [])
        for manifest in recording.manifests
    ]
    typer.echo(json.dumps(rows))


@app.command()
def gc(
    dry_run: DryRun = False,
    max_size: Annotated[
        str | None, typer.Option(help="List the recordings to forget so that entries take at most 50GB.")
    ] = None,
    max_age: Annotated[
        str | None, typer.Option(help="List the recordings not used for 30d, to forget.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Forget the recordings that are listed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries that no recording names and nobody used for 24 hours, and what killed processes left.

    Example: seeonce store gc --max-size 50GB --yes
    """
    opened = Store.open(Home.locate(), create=False)
    max_bytes = None if max_size is None else parse_size(max_size, "--max-size")
    max_age_s = None if max_age is None else parse_age_s(max_age, "--max-age")
    chosen = least_used(opened, max_bytes=max_bytes, max_age_s=max_age_s)
    forgets = yes and not dry_run
    if forgets:
        forget_all(opened, chosen)
    with LateBar("entry", "gc") as bar:
        found = collect(opened, dry_run=dry_run, on_progress=bar.show)
    if as_json:
        typer.echo(collection_as_json(found, chosen, forgotten=forgets))
        return
    if max_bytes is not None or max_age_s is not None:
        typer.echo(forgetting_text(chosen, done=forgets))
    typer.echo(collection_text(found))


@app.command("forget")
def forget_command(
    recording: Annotated[str, typer.Argument(help="An id, the start of one, a name or a path.")],
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Remove all that nothing else needs of it now, also its runs."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a recording: its entries are collected when nobody has used them for 24 hours.

    Example: seeonce store forget monday --purge
    """
    opened = Store.open(Home.locate(), create=False)
    try:
        recording_id = find_recording_id(opened.home, recording)
        found = forget(opened, recording_id, purge=purge, remove_runs=_remove_runs)
    except NotEncodedError:
        if not purge:
            raise
        found = purge_runs(opened, recording, _remove_runs)
    typer.echo(json.dumps(asdict(found)) if as_json else forgotten_text(found, purge=purge))


@app.command()
def check(
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte of every entry.")] = False,
    subset: Annotated[str, typer.Option(help="Check only one part of several, as in 2/5.")] = "1/1",
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on where it was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem of the store, and change nothing: exit 0 none, 1 some, 130 interrupted.

    Example: seeonce store check --read-data --subset 1/7
    """
    opened = Store.open(Home.locate(), create=False)
    with LateBar("B", "check") as bar:
        found = check_store(
            opened,
            read_data=read_data,
            subset=Subset.from_text(subset),
            restart=restart,
            on_progress=bar.show,
        )
    typer.echo(json.dumps(asdict(found)) if as_json else check_text(found))
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.problems:
        raise typer.Exit(1)


@app.command("repair")
def repair_command(
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte of every entry.")] = False,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint that encoded: a folder or hub id; else as for encode.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put damaged entries away and encode again what is missing: exit 0 all right, 3 something remains.

    Example: seeonce store repair --read-data --model ~/models/Qwen3-VL-4B
    """
    opened = Store.open(Home.locate(), create=False)
    with LateBar("B", "check") as bar:
        found = repair(
            opened,
            _encode_missing,
            read_data=read_data,
            model=model,
            on_progress=bar.show,
            say=lambda line: typer.echo(line, err=True),
        )
    typer.echo(json.dumps(asdict(found)) if as_json else repair_text(found))
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.remaining:
        raise typer.Exit(EXIT_PARTLY)


def collection_as_json(found: Collection, chosen: Sequence[ToForget], *, forgotten: bool) -> str:
    """Return a collection as one line of JSON; a lease whose start is not known has null."""
    leases = [
        {"purpose": lease.purpose, "since": None if math.isinf(lease.since_s) else time_text(lease.since_s)}
        for lease in found.leases
    ]
    recordings = [
        {"recording": one.recording, "used_at": time_text(one.used_s), "num_bytes": one.num_bytes}
        for one in chosen
    ]
    more = {"leases": leases, "least_used": recordings, "forgotten": forgotten}
    return json.dumps({**asdict(found), **more})


def stats_as_json(stats: StoreStats) -> str:
    """Return the numbers as one line of JSON."""
    encoders = [{**asdict(row), "encoder_id": row.encoder_id.hex} for row in stats.encoders]
    reclaimable = stats.reclaimable and {
        "num_entries": stats.reclaimable.num_entries,
        "num_bytes": stats.reclaimable.num_bytes,
    }
    return json.dumps({**asdict(stats), "encoders": encoders, "reclaimable": reclaimable})
