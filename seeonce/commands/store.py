"""``seeonce store …``: what the store holds, and its upkeep."""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import typer

from cache.base.canonical_json import record_to_json
from cache.base.errors import EXIT_INTERRUPTED, EXIT_PARTLY, InputError, NotEncodedError
from cache.base.home import Home
from cache.base.text import megabytes, parse_age_s, parse_size
from cache.bucket import BucketStore
from cache.bucket_upkeep import check_bucket, collect_bucket
from cache.check import check_store, parse_part, repair
from cache.forget import Forgotten, find_recording_id, forget, least_used, purge_entries, purge_prefixes
from cache.gc import collect
from cache.layout import stored_entries, time_text
from cache.leases import forget_uses
from cache.manifest import stored_recordings
from cache.mirror import Transferred, privacy_line, pull, push
from cache.objects import check_address
from cache.stats import store_stats
from cache.store import Store
from precompute.live import encode_again
from seeonce.commands.arguments import AsJson
from seeonce.commands.store_text import (
    bucket_collection_text,
    check_text,
    collection_text,
    forgetting_text,
    forgotten_text,
    repair_text,
    stats_table,
    transferred_text,
)
from seeonce.commands.terminal import Terminal
from seeonce.runs.answer_cache import AnswerCache
from seeonce.runs.find import remove_runs

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")]

Address = Annotated[
    str | None, typer.Argument(metavar="URL", help="A bucket, s3://bucket/prefix, instead of this store.")
]

app = typer.Typer(help="Look after the embedding store.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """Look after the embedding store."""


@app.command()
def stats(as_json: AsJson = False) -> None:
    """Show what the store holds, and what sharing saves.

    Example: seeonce store stats --json
    """
    home = Home.locate()
    found = store_stats(home)
    for warning in home.warnings():
        typer.echo(f"warning: {warning}", err=True)
    if not as_json:
        typer.echo(stats_table(home, found))
        return
    free = found.reclaimable and {
        "num_entries": found.reclaimable.num_entries,
        "num_bytes": found.reclaimable.num_bytes,
    }
    typer.echo(json.dumps({**record_to_json(found), "reclaimable": free}))


@app.command("ls")
def list_command(
    entries: Annotated[bool, typer.Option(help="List entries instead of recordings.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is stored, the least recently used first.

    Example: seeonce store ls --entries
    """
    opened = Store.open(Home.locate(), create=False)
    found = sorted(stored_entries(opened.path), key=lambda entry: (entry.used_s, entry.key.raw))
    recordings = stored_recordings(opened.home)
    rows: list[dict[str, Any]]
    if entries:
        named = {key: recording.id for recording in recordings for key in recording.keys}
        rows = [
            {"key": entry.key.hex, "num_bytes": entry.num_bytes, "used_at": time_text(entry.used_s)}
            for entry in found
        ]
        lines = [f"{'last use':<20} {'bytes':>10}  {'key':<64}  named by"]
        lines += [
            f"{row['used_at']:<20} {megabytes(row['num_bytes']):>10}  {row['key']}  "
            f"{named.get(entry.key, '-')}"
            for entry, row in zip(found, rows, strict=True)
        ]
    else:
        sizes = {entry.key: entry.num_bytes for entry in found}
        rows = [
            {
                "recording": recording.id,
                "encoder_id": ref.encoder_id.hex,
                "num_frames": ref.num_frames,
                "num_entries": len(keys := set(ref.keys)),
                "num_bytes": sum(sizes.get(key, 0) for key in keys),
                "used_at": time_text(ref.used_s()),
                "complete": ref.complete,
            }
            for recording in recordings
            for ref in recording.manifests
        ]
        lines = [f"{'last use':<20} {'frames':>7} {'entries':>7} {'bytes':>10}  encoder       recording"]
        lines += [
            f"{row['used_at']:<20} {row['num_frames']:>7,} {row['num_entries']:>7,} "
            f"{megabytes(row['num_bytes']):>10}  {row['encoder_id'][:12]}  {row['recording']}"
            for row in rows
        ]
    typer.echo(json.dumps(rows) if as_json else "\n".join(lines))


@app.command()
def gc(
    address: Address = None,
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
    """Remove entries that no recording needs.

    Those that nobody used for 24 hours, and what killed processes left. In a bucket, those that have been
    needed by no recording for 7 days, counted from the first collection that found them.

    Example: seeonce store gc --max-size 50GB --yes
    """
    if address is not None:
        if max_size or max_age or yes:
            raise InputError("--max-size, --max-age and --yes are for the local store: leave the address out")
        with Terminal() as terminal:
            in_bucket = collect_bucket(
                BucketStore.open(address, writable=not dry_run),
                dry_run=dry_run,
                on_progress=partial(terminal.show, "gc", "group"),
            )
        typer.echo(json.dumps(asdict(in_bucket)) if as_json else bucket_collection_text(in_bucket))
        return
    opened = Store.open(Home.locate(), create=False)
    max_bytes = None if max_size is None else parse_size(max_size, "--max-size")
    max_age_s = None if max_age is None else parse_age_s(max_age, "--max-age")
    chosen = least_used(opened, max_bytes=max_bytes, max_age_s=max_age_s)
    forgets = yes and not dry_run
    for recording, _ in chosen if forgets else []:
        forget(opened, recording.id)
    with Terminal() as terminal:
        found = collect(opened, dry_run=dry_run, on_progress=partial(terminal.show, "gc", "entry"))
    if as_json:
        least_used_first = [
            {"recording": recording.id, "used_at": time_text(recording.used_s), "num_bytes": num_bytes}
            for recording, num_bytes in chosen
        ]
        leases = [
            {"purpose": one.purpose, "since": None if math.isinf(one.since_s) else time_text(one.since_s)}
            for one in found.leases
        ]
        more = {"leases": leases, "least_used": least_used_first, "forgotten": forgets}
        typer.echo(json.dumps({**asdict(found), **more}))
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
    """Forget a recording.

    Its entries are collected when nobody has used them for 24 hours.

    Example: seeonce store forget monday --purge
    """
    opened = Store.open(Home.locate(), create=False)
    try:
        recording_id = find_recording_id(opened.home, recording)
    except NotEncodedError:
        if not purge:
            raise
        # It may have been forgotten before, without its runs.
        found = Forgotten(recording, num_runs=_remove_runs(opened, recording))
        found = replace(found, num_prefixes=purge_prefixes(opened))
        if not (found.num_runs or found.num_prefixes):
            raise NotEncodedError(
                f"{recording!r} is not in the store, and no run is of it: see what there is with "
                "seeonce store ls."
            ) from None
    else:
        found, named = forget(opened, recording_id, purge=purge)
        if purge:
            # Runs first: they are text, and the likeliest to be read by somebody.
            found = replace(found, num_runs=_remove_runs(opened, recording_id))
            found = purge_entries(opened, found, named)
    typer.echo(json.dumps(asdict(found)) if as_json else forgotten_text(found, purge=purge))


def _remove_runs(store: Store, recording_id: str) -> int:
    """Remove the runs of a recording that is forgotten, and every answer that was kept of it."""
    forget_uses(store, recording_id)
    with AnswerCache(store.home) as known:
        known.remove_recording(recording_id)
    return remove_runs(store.home, recording_id)


@app.command()
def check(
    address: Address = None,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte of every entry.")] = False,
    subset: Annotated[str, typer.Option(help="Check only one part of several, as in 2/5.")] = "1/1",
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on where it was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem of the store, and change nothing.

    Exit 0 none, 1 some, 130 interrupted.

    Example: seeonce store check --read-data --subset 1/7
    """
    part = parse_part(subset, "--subset")
    with Terminal() as terminal:
        if address is not None:
            found = check_bucket(
                BucketStore.open(address),
                read_data=read_data,
                subset=part,
                on_progress=partial(terminal.show, "check", "group"),
            )
        else:
            found = check_store(
                Store.open(Home.locate(), create=False),
                read_data=read_data,
                subset=part,
                restart=restart,
                on_progress=partial(terminal.show, "check", "B"),
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
    """Put damaged entries away, encode again what is missing.

    Exit 0 all right, 3 something remains.

    Example: seeonce store repair --read-data --model ~/models/Qwen3-VL-4B
    """
    opened, say = Store.open(Home.locate(), create=False), partial(typer.echo, err=True)
    with Terminal() as terminal:
        show = partial(terminal.show, "check", "B")
        encode = partial(encode_again, opened, model=model, say=say)
        found = repair(opened, encode, read_data=read_data, on_progress=show, say=say)
    document = asdict(found)
    document = {"num_put_away": document.pop("num_quarantined"), **document}  # the name that scripts know
    typer.echo(json.dumps(document) if as_json else repair_text(found))
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.remaining:
        raise typer.Exit(EXIT_PARTLY)


First = Annotated[
    str, typer.Argument(metavar="[RECORDING]", help="An id, the start of one, a name or a path; else all.")
]
Second = Annotated[
    str | None, typer.Argument(metavar="URL", help="s3://bucket/prefix, gs://, az://, file:///.")
]
Bandwidth = Annotated[str | None, typer.Option(help="Bytes a second at most, as in 20MB.")]


@app.command("push")
def push_command(
    recording: First,
    address: Second = None,
    bandwidth: Bandwidth = None,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read what is there already, and replace it if it is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy recordings into a bucket.

    s3://, gs:// or az:// with bucket and prefix, or file:///folder. Credentials come from the environment.
    What is there already stays; an interrupted push goes on. Exit 0 all went over, 3 something is missing.

    Example: seeonce store push monday s3://team-screens/2026
    """
    chosen, place = _recording_and_address(recording, address)
    bytes_per_s = None if bandwidth is None else _rate(bandwidth)
    opened = Store.open(Home.locate(), create=False)
    typer.echo(privacy_line(place), err=True)
    with Terminal() as terminal:
        found = push(
            opened,
            BucketStore.open(place, create=True),
            chosen,
            terminal,
            bytes_per_s=bytes_per_s,
            read_data=read_data,
        )
    _end_transfer(found, "pushed", as_json)


@app.command("pull")
def pull_command(
    recording: First, address: Second = None, bandwidth: Bandwidth = None, as_json: AsJson = False
) -> None:
    """Copy recordings from a bucket into the local store.

    What is here already stays; every byte that comes is checked; an interrupted pull goes on. With
    SEEONCE_REMOTE=URL, describe fetches what it misses by itself. Exit 0 all came, 3 something is missing.

    Example: seeonce store pull monday s3://team-screens/2026
    """
    chosen, place = _recording_and_address(recording, address)
    bytes_per_s = None if bandwidth is None else _rate(bandwidth)
    bucket = BucketStore.open(place)
    with Terminal() as terminal:
        found = pull(Store.open(Home.locate()), bucket, chosen, terminal, bytes_per_s=bytes_per_s)
    _end_transfer(found, "pulled", as_json)


def _recording_and_address(first: str, second: str | None) -> tuple[str | None, str]:
    return (None, check_address(first)) if second is None else (first, check_address(second))


def _rate(text: str) -> float:
    size = parse_size(text, "--bandwidth")
    if not size:
        raise InputError("--bandwidth 0 would never end: give a size such as 20MB")
    return size


def _end_transfer(found: Transferred, verb: str, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(found)) if as_json else transferred_text(found, verb))
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if found.missing:
        raise typer.Exit(EXIT_PARTLY)
