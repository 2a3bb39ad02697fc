"""``seeonce encode``: options, progress and the printed form."""

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cache.base.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PARTLY, InputError, SeeonceError, code_of_all
from cache.base.home import Home
from cache.base.text import counted, megabytes, printable
from cache.bucket import BucketStore
from cache.check import parse_part
from cache.mirror import privacy_line
from cache.objects import check_address
from cache.store import Durability
from precompute.options import EncodeOptions, options_of_each
from precompute.pass_one import EncodeOne, encode_each
from precompute.pipeline import EncodeResult
from seeonce.commands.arguments import ByEngine, GpusPerWorker, NumWorkers, fleet_of
from seeonce.commands.terminal import Terminal
from sources.folder import split_paths

if TYPE_CHECKING:
    from precompute.shards import Merged

_NICENESS = 15  # of a watch, beside whatever the user does

Recordings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECORDING",
        help="demo, latest, an id, its start, a path, an address; - reads paths and addresses from stdin.",
    ),
]


def encode_command(
    recordings: Recordings = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder or hub id; SEEONCE_MODEL, else as before, else Qwen3-VL-4B 4-bit."),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Resize frames to at most so many pixels; or as before.")
    ] = None,
    every: Annotated[
        float | None, typer.Option(help="Of a video, take a frame every so many seconds; 10, or as before.")
    ] = None,
    scene_change: Annotated[
        float | None,
        typer.Option(
            help="Look every second or --every, take what differs by: 0.005 a menu, 0.02 a window; 0: all"
        ),
    ] = None,
    near_duplicates: Annotated[
        int | None,
        typer.Option(help="Frames whose perceptual hash differs in at most so many bits of 64 are one."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take only the first so many frames.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Encode all recordings since: 2d, 12h, or a date.")
    ] = None,
    durability: Annotated[
        Durability, typer.Option(help="What a committed entry survives: a kill, a crash, a power cut.")
    ] = Durability.batch,
    no_thumbnails: Annotated[
        bool, typer.Option("--no-thumbnails", help="Keep no small pictures of the frames for reports.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Encode what comes until Ctrl-C: of a folder, Cap's, Escribano's recorder."
        ),
    ] = False,
    battery: Annotated[bool, typer.Option("--on-battery", help="With --watch, also on battery.")] = False,
    to: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Into a bucket, s3://bucket/prefix, instead of this store."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="With --to, only this part, such as 2/8; --merge ends it."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="With --to, write the manifest once all shards are encoded.")
    ] = False,
    engine: ByEngine = None,
    workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each recording.")] = False,
) -> None:
    """Run the vision encoder once over every new frame.

    Example: seeonce encode ~/Recordings/monday --max-pixels 1000000
    """
    selectors = recordings or []
    if watch:
        if since is not None or limit is not None or near_duplicates is not None or "-" in selectors:
            raise InputError(
                "--watch takes all that comes: leave out --since, --limit, --near-duplicates and -"
            )
    elif battery:
        raise InputError("--on-battery is for --watch")
    listed = split_paths(sys.stdin.buffer.read()) if "-" in selectors else []
    options = EncodeOptions(
        "latest", model, max_pixels, every, limit, durability,
        thumbnails=not no_thumbnails, scene_change=scene_change, near_duplicates=near_duplicates,
    )  # fmt: skip
    part = None if shard is None else parse_part(shard, "--shard")
    _check_bucket_options(to, options, watch=watch, cut=part is not None, merge=merge)
    fleet = fleet_of(engine, workers, gpus_per_worker)
    if fleet is not None and (to is None or part is not None or merge):
        raise InputError(
            "--engine ray cuts and merges itself: give --to URL, and neither --shard nor --merge"
        )
    if watch:
        raise typer.Exit(_watch(options, selectors, as_json=as_json, on_battery=battery))
    with Terminal() as listener:
        wanted = options_of_each(options, selectors, listed, since)
        if to is not None and fleet is not None:
            from seeonce.fleet import encode_by_ray

            bucket = _open_bucket(to, listener)
            ends = [
                _print_merged(each, to, as_json) for each in encode_by_ray(fleet, wanted, bucket, listener)
            ]
        elif to is not None and merge:
            from precompute.shards import merge_each

            merged = merge_each(BucketStore.open(to, writable=True), wanted, listener.say)
            ends = [_print_merged(each, to, as_json) for each in merged]
        else:
            one = None if to is None else _into(to, part, listener)
            ends = [_print(each, as_json) for each in encode_each(Home.locate(), wanted, listener, one)]
    raise typer.Exit(code_of_all(ends))


def _check_bucket_options(
    to: str | None, options: EncodeOptions, *, watch: bool, cut: bool, merge: bool
) -> None:
    if to is None and (cut or merge):
        raise InputError("--shard and --merge are for a bucket: name it, as in --to s3://bucket/prefix")
    if to is not None and (watch or options.near_duplicates is not None):
        raise InputError("--watch and --near-duplicates need a local store: encode there, and store push it")
    if cut and merge:
        raise InputError("--shard encodes and --merge comes after all of them: leave one of them out")


def _into(to: str, shard: tuple[int, int] | None, listener: Terminal) -> EncodeOne:
    """Return what encodes one recording, or a shard of it, into a bucket."""
    from precompute.shards import encode_shard, encode_whole

    bucket = _open_bucket(to, listener)
    if shard is None:
        return partial(encode_whole, bucket=bucket)
    return partial(encode_shard, bucket=bucket, shard=shard)


def _watch(options: EncodeOptions, selectors: list[str], *, as_json: bool, on_battery: bool) -> int:
    """Encode what comes until Ctrl-C, which is no failure: print what it came to."""
    from precompute.watch import Watch, places_of

    places = [place for selector in selectors or (None,) for place in places_of(selector)]
    os.nice(_NICENESS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a service is stopped
    with Terminal() as listener:
        for place in places:
            listener.say(f"Watching {printable(place.path)}; Ctrl-C ends it.")
        watch = Watch(Home.locate(), options, listener, on_battery=on_battery)
        with suppress(KeyboardInterrupt):
            watch.run(places)
    watch.note_use()
    return code_of_all([_print(result, as_json) for result in watch.results.values()] or [0])


def _print(result: EncodeResult | InputError, as_json: bool) -> int:
    """Print how one recording went; return the exit code that it would have alone."""
    if isinstance(result, InputError):
        typer.echo(f"error: {result}", err=True)
        return EXIT_ERROR
    typer.echo(_as_json(result) if as_json else _summary(result))
    for skipped in result.manifest.skipped:
        typer.echo(f"skipped frame {skipped.index}: {skipped.reason}", err=True)
    if result.stopped:
        typer.echo(f"stopped: {result.stopped}", err=True)
    if result.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_PARTLY if result.manifest.skipped or result.stopped else 0


def _open_bucket(to: str, listener: Terminal) -> BucketStore:
    listener.say(privacy_line(check_address(to)))
    return BucketStore.open(to, create=True)


def _print_merged(merged: "Merged | SeeonceError", to: str, as_json: bool) -> int:
    if isinstance(merged, SeeonceError):
        typer.echo(f"error: {merged}", err=True)
        return EXIT_ERROR
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "recording": merged.recording.id,
                    "encoder_id": merged.encoder_id.hex,
                    "num_shards": merged.num_shards,
                    "num_encoded": merged.num_frames,
                    "num_skipped": merged.num_skipped,
                    "num_entries": merged.num_entries,
                }
            )
        )
    else:
        typer.echo(
            f"{merged.recording.id}: {counted(merged.num_frames, 'frame')} of "
            f"{counted(merged.num_shards, 'shard')} in {counted(merged.num_entries, 'entry')}, "
            f"{merged.num_skipped} skipped; its manifest is in {check_address(to)}."
        )
    return EXIT_PARTLY if merged.num_skipped else 0


def _summary(result: EncodeResult) -> str:
    manifest, progress = result.manifest, result.progress
    num_entries = len({frame.key for frame in manifest.frames})
    state = "interrupted; run the same command to go on" if result.interrupted else "done"
    state = "stopped at the limit of the store" if result.stopped else state
    bound = f" Time: {result.seconds}." if result.seconds.total else ""
    # On Ctrl-C an entry may be new and its frame not added.
    num_there = max(0, num_entries - progress.num_new)
    num_repeated = sum(frame.neighbour is None for frame in manifest.frames) - num_entries
    repeated = f"{num_repeated} repeated, " if num_repeated else ""
    near = f"{progress.num_near} use a neighbour's, " if progress.num_near else ""
    return (
        f"{manifest.recording.id}: {len(manifest.frames)} of {counted(progress.num_frames, 'frame')} in "
        f"{counted(num_entries, 'entry')}, "
        f"{num_there} already there, {progress.num_new} new ({megabytes(progress.num_bytes)}), "
        f"{repeated}{near}{progress.num_skipped} skipped; {state}.{bound}"
    )


def _as_json(result: EncodeResult) -> str:
    manifest, progress = result.manifest, result.progress
    return json.dumps(
        {
            "recording": manifest.recording.id,
            "encoder_id": manifest.encoder.encoder_id.hex,
            "num_frames": progress.num_frames,
            "num_encoded": len(manifest.frames),
            "num_entries": len({frame.key for frame in manifest.frames}),
            "num_hits": progress.num_hits,
            "num_new": progress.num_new,
            "num_bytes": progress.num_bytes,
            "num_near": progress.num_near,
            "skipped": [asdict(skipped) for skipped in manifest.skipped],
            "left_out": list(result.left_out),
            "interrupted": result.interrupted,
            "stopped": result.stopped,
        }
    )
