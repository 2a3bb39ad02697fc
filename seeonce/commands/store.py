"""``seeonce store …``: what the store says about itself, and its upkeep."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from cache.base.errors import EXIT_INTERRUPTED, EXIT_PARTLY, NotEncodedError
from cache.base.home import Home
from cache.base.text import megabytes, parse_age_s, parse_size
from cache.check import CheckReport, Missing, RepairReport, Subset, check_store, repair
from cache.forget import (
    Forgotten,
    ToForget,
    find_recording_id,
    forget,
    forget_all,
    least_used,
    purge_runs,
)
from cache.gc import Collection, collect
from cache.key import EntryKey
from cache.layout import StoredEntry, stored_entries
from cache.manifest import FrameEntry
from cache.recordings import StoredRecording, stored_recordings, time_text
from cache.stats import StoreStats, store_stats
from cache.store import Store
from seeonce.commands.terminal import Terminal
from seeonce.runs.find import remove_runs
from seeonce.runs.known import AnswerCache

_RUNS_SHOWN = 5


def stats_table(home: Home, stats: StoreStats) -> str:
    """Return the numbers of a store."""
    rows = [
        ("store", str(home.store)),
        ("entries", f"{stats.num_entries:,} ({megabytes(stats.num_bytes)})"),
        ("recordings", f"{stats.num_recordings:,}"),
        ("frames", f"{stats.num_frames:,} named, {stats.num_shared:,} shared"),
        ("saved by sharing", megabytes(stats.num_bytes_saved)),
        ("named by no recording", f"{stats.num_unreferenced:,}"),
        ("in quarantine", f"{stats.num_quarantined:,}"),
        ("unfinished or left over", f"{stats.num_tmp:,}"),
        ("gc would free", _reclaimable(stats)),
        ("free on the disk", megabytes(stats.free_bytes)),
    ]
    for row in stats.encoders:
        name = f"encoder {row.encoder_id.hex[:12]}"
        rows.append((name, f"{row.num_entries:,} ({megabytes(row.num_bytes)}), {row.label}"))
    for use in stats.runs[:_RUNS_SHOWN]:
        words = f"{use.num_hits:,} hits, {use.num_misses:,} misses, {use.at[:16]}, {use.recording}"
        rows.append((f"last {use.kind}", words))
    return "\n".join(f"{name:<24}{value}" for name, value in rows)


def _reclaimable(stats: StoreStats) -> str:
    found = stats.reclaimable
    if found is None:
        return (
            "nothing: a manifest cannot be read, see seeonce store check" if stats.num_manifests else "0 kB"
        )
    return f"{megabytes(found.num_bytes)} in {found.num_entries:,} entries"


def recordings_table(recordings: Sequence[StoredRecording], sizes: Mapping[EntryKey, int]) -> str:
    """Return a line for each manifest, the least recently used first."""
    lines = [f"{'last use':<20} {'frames':>7} {'entries':>7} {'bytes':>10}  encoder       recording"]
    for recording in recordings:
        for manifest in recording.manifests:
            size = megabytes(sum(sizes.get(key, 0) for key in manifest.keys))
            lines.append(
                f"{time_text(manifest.used_s):<20} {manifest.ref.num_frames:>7,} {len(manifest.keys):>7,} "
                f"{size:>10}  {manifest.ref.encoder_id.hex[:12]}  {recording.id}"
            )
    return "\n".join(lines)


def entries_table(entries: Sequence[StoredEntry], recordings: Sequence[StoredRecording]) -> str:
    """Return a line for each entry, the least recently used first."""
    named = {key: recording.id for recording in recordings for key in recording.keys}
    lines = [f"{'last use':<20} {'bytes':>10}  {'key':<64}  named by"]
    lines += [
        f"{time_text(entry.used_s):<20} {megabytes(entry.num_bytes):>10}  {entry.key.hex}  "
        f"{named.get(entry.key, '-')}"
        for entry in entries
    ]
    return "\n".join(lines)


def collection_text(found: Collection) -> str:
    """Say what a collection removed, or would remove."""
    verb = "would remove" if found.dry_run else "removed"
    lines = [
        f"{verb} {found.num_entries:,} entries ({megabytes(found.num_bytes)}), {found.num_tmp:,} unfinished, "
        f"{found.num_trash:,} in trash, {found.num_quarantined:,} in quarantine for 30 days, "
        f"{found.num_thumbnails:,} thumbnails, {found.num_files:,} other files."
    ]
    if found.num_kept:
        lines.append(f"{found.num_kept:,} entries came to be needed meanwhile and stay.")
    lines += [f"held off by: {lease.purpose}, {_since(lease.since_s)}" for lease in found.leases]
    return "\n".join(lines)


def forgetting_text(chosen: Sequence[ToForget], *, done: bool) -> str:
    """Say which recordings go, the least recently used first."""
    verb = "forgot" if done else "would forget"
    lines = [
        f"{verb} {one.recording}, last used {time_text(one.used_s)}, {megabytes(one.num_bytes)}"
        for one in chosen
    ]
    size = megabytes(sum(one.num_bytes for one in chosen))
    what = "go once nobody has used them for 24 hours" if done else "would be free; --yes forgets them"
    return "\n".join(
        [*lines, f"{len(chosen):,} recordings, {size}: {what}."] if chosen else ["no recording to forget."]
    )


def forgotten_text(found: Forgotten, *, purge: bool) -> str:
    """Say what of a recording is gone."""
    line = f"{found.recording}: {found.num_manifests:,} manifests removed"
    if not purge:
        return f"{line}; of its {found.num_left:,} entries, those that nothing else needs go with a later gc."
    left = ""
    if found.num_left:
        left = f" {found.num_left:,} entries stay: others name them, or a running command uses them."
    return (
        f"{line}, {found.num_entries:,} entries ({megabytes(found.num_bytes)}), {found.num_thumbnails:,} "
        f"thumbnails, {found.num_quarantined:,} in quarantine, {found.num_runs:,} runs, the "
        f"memory of {found.num_files:,} files.{left}"
    )


def check_text(found: CheckReport) -> str:
    """Say what a check found, a line for each problem."""
    lines = [f"{problem.kind:<8} {problem.what}: {problem.reason}" for problem in found.problems]
    how = "every byte" if found.read_data else "metadata and length"
    before = f", {found.num_resumed:,} before" if found.num_resumed else ""
    verdict = (
        f"{len(found.problems):,} problems; see seeonce store repair" if found.problems else "no problem"
    )
    if found.interrupted:
        verdict += "; interrupted, the same command goes on" if found.read_data else "; interrupted"
    size = f" ({megabytes(found.num_bytes)})" if found.read_data else ""
    return "\n".join([*lines, f"checked {how} of {found.num_entries:,} entries{size}{before}: {verdict}."])


def repair_text(found: RepairReport) -> str:
    """Say what was repaired, a line for each problem that remains."""
    lines = [f"{problem.kind:<8} {problem.what}: {problem.reason}" for problem in found.remaining]
    done = f"{found.num_put_away:,} damaged entries put away, {found.num_encoded:,} encoded again"
    end = "; interrupted, the same command goes on" if found.interrupted else ""
    return "\n".join([*lines, f"{done}, {len(found.remaining):,} problems remain{end}."])


def _since(since_s: float) -> str:
    return f"since {time_text(since_s)}" if 0 < since_s <= time.time() else "since nobody knows when"


def _encode_missing(missing: Missing) -> Iterator[tuple[FrameEntry, str | None]]:
    from precompute.live import encode_again  # imports mlx-vlm, which takes seconds

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
    """Show what the store holds, and what sharing saves.

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
    """List what is stored, the least recently used first.

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
    """Remove entries that no recording needs.

    Those that nobody used for 24 hours, and what killed processes left.

    Example: seeonce store gc --max-size 50GB --yes
    """
    opened = Store.open(Home.locate(), create=False)
    max_bytes = None if max_size is None else parse_size(max_size, "--max-size")
    max_age_s = None if max_age is None else parse_age_s(max_age, "--max-age")
    chosen = least_used(opened, max_bytes=max_bytes, max_age_s=max_age_s)
    forgets = yes and not dry_run
    if forgets:
        forget_all(opened, chosen)
    with Terminal() as terminal:
        found = collect(opened, dry_run=dry_run, on_progress=partial(terminal.show, "gc", "entry"))
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
    """Forget a recording.

    Its entries are collected when nobody has used them for 24 hours.

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
    """Find every problem of the store, and change nothing.

    Exit 0 none, 1 some, 130 interrupted.

    Example: seeonce store check --read-data --subset 1/7
    """
    opened = Store.open(Home.locate(), create=False)
    with Terminal() as terminal:
        found = check_store(
            opened,
            read_data=read_data,
            subset=Subset.from_text(subset),
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
    opened = Store.open(Home.locate(), create=False)
    with Terminal() as terminal:
        found = repair(
            opened,
            _encode_missing,
            read_data=read_data,
            model=model,
            on_progress=partial(terminal.show, "check", "B"),
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
