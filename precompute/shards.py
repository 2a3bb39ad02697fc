"""Pass one into a bucket, over any number of machines: each encodes a shard of a recording, one merges.

A shard is a run of neighbouring frames. Its entries go straight into the bucket, its rows into a list beside
them; the lists together become the manifest that one machine would have written.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import counted
from cache.bucket import BucketStore
from cache.bucket_manifests import Part, head_names, parts_of, read_head, read_parts, write_rows
from cache.bucket_upkeep import NUM_GROUPS, KeysOnDisk, require_entries
from cache.key import EncoderId, EntryKey
from cache.layout import RECORDINGS, SHARDS, now
from cache.manifest import ManifestHead, RecordingInfo, matching_recording
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.folder import find_checkpoint
from checkpoint.identity import model_of
from precompute.loaded import Loaded, load_encoder
from precompute.options import EncodeOptions, frame_choice, open_named
from precompute.pass_one import chosen_encoder, show_progress
from precompute.pipeline import EncodeResult, encode_recording
from sources.folder import open_list
from sources.recording import PendingNotes

_NUM_READERS = 16
_NUM_NAMED = 8


@dataclass(frozen=True, slots=True)
class Merged:
    """The manifest that was made of shards, or that stays since it names more than they do."""

    recording: RecordingInfo
    encoder_id: EncoderId
    num_shards: int
    num_frames: int
    num_skipped: int
    num_entries: int


def shard_range(shard: tuple[int, int], num_frames: int) -> range:
    """Return the indexes of the frames of a shard, "2/8" counted from 1: neighbours, and as many in each."""
    number, num_shards = shard
    return range((number - 1) * num_frames // num_shards, number * num_frames // num_shards)


def encode_shard(
    home: Home,
    options: EncodeOptions,
    listener: Listener,
    loaded: Loaded,
    *,
    bucket: BucketStore,
    shard: tuple[int, int],
) -> EncodeResult:
    """Encode what the bucket lacks of a shard, and put a list of its frames there.

    What it means is said by ``options`` alone, since earlier manifests may differ from machine to machine.
    Of ``home`` only the pixel index is used. The encoder is taken from ``loaded``, or put there.

    Raises:
        InputError: no such recording.
        CheckpointError: the model is missing or not supported.
        StoreError: the bucket refuses.
    """
    frame_choice(options).require_sound()
    Store.open(home)  # makes the folder of the pixel index
    notes = PendingNotes(home)
    recording = open_named((), options, notes, listener)
    for warning in recording.remarks:
        listener.say(f"warning: {warning}")
    info = recording.info
    model = options.model or model_of(home, info.id, None)
    checkpoint = find_checkpoint(model, listener.say)
    part = recording.part(shard_range(shard, info.num_frames))
    where = f"shard {shard[0]}/{shard[1]}, " if shard[1] > 1 else ""
    listener.say(f"{info.id}: {where}{counted(len(part.frames()), 'frame')}.")
    with PixelIndex(home) as index:
        notes.write(index)
        spec = chosen_encoder(checkpoint, index, options, (), model, listener.say)
        load = partial(load_encoder, checkpoint, spec, loaded)
        try:
            result = encode_recording(part, spec, bucket, index, load, partial(show_progress, listener))
        finally:
            recording.close()
    manifest = result.manifest
    write_rows(
        bucket.objects,
        info,
        spec,
        parts_of(manifest.frames, manifest.skipped),
        complete=manifest.complete,
        created_at=manifest.created_at,
        folder=f"{SHARDS}/{info.id}/{spec.encoder_id.hex}/{shard[0]}of{shard[1]}",
    )
    return result


def encode_whole(
    home: Home,
    options: EncodeOptions,
    listener: Listener,
    loaded: Loaded,
    *,
    bucket: BucketStore,
) -> EncodeResult:
    """Encode a recording into the bucket as its only shard, and write its manifest there.

    Raises as ``encode_shard`` and ``merge`` do.
    """
    result = encode_shard(home, options, listener, loaded, bucket=bucket, shard=(1, 1))
    if not result.interrupted:
        merge(bucket, result.manifest.recording.id, listener.say)
    return result


def merge_each(
    bucket: BucketStore, wanted: Sequence[EncodeOptions], say: Callable[[str], None]
) -> Iterator[Merged | InputError | NotEncodedError]:
    """Merge the shards of several recordings; one that cannot be gives its error, and the rest goes on.

    Raises:
        InputError, NotEncodedError: the only one cannot be merged.
    """
    for options in wanted:
        images = options.images
        name = open_list(images, limit=options.limit).info.id if images else options.recording
        try:
            yield merge(bucket, name, say)
        except (InputError, NotEncodedError) as error:
            if len(wanted) == 1:
                raise
            yield error


def merge(bucket: BucketStore, selector: str, say: Callable[[str], None]) -> Merged:
    """Write the manifest of a recording of which all shards are in the bucket; do so as often as you like.

    Rows are not held in memory. ``latest`` is the recording whose shard was the last to be encoded.

    Raises:
        NotEncodedError: shards are missing, not complete or lack entries; it names them.
        InputError: several recordings fit, or no frame of it could be read.
        StoreError: the bucket refuses, or entries went away meanwhile.
    """
    heads = _whole(bucket, selector, say)
    first, num_frames = heads[0], sum(head.num_frames for head in heads)
    info = replace(first.recording, captured_at=min(head.recording.captured_at for head in heads))
    if not num_frames:
        reason = next(row.reason for part in _parts(bucket, heads) for row in part.skipped)
        raise InputError(f"No frame of {info.id} can be read: {reason}")
    with KeysOnDisk() as keys:
        for part in _parts(bucket, heads):
            keys.add(frame.key for frame in part.frames)
        if gone := _gone(bucket, keys):
            raise NotEncodedError(_lacking(bucket, heads, gone))
        there = None if info.limit is None else _newest_manifest(bucket, first)
        if there is not None and there.num_frames > num_frames:
            say(f"The manifest of {there.num_frames} frames stays: it names more than these.")
        else:
            _write_manifest(bucket, heads, info, keys)
        num_skipped = sum(head.num_skipped for head in heads)
        num_entries = sum(len(keys.group(number)) for number in range(NUM_GROUPS))
    return Merged(info, first.encoder_id, len(heads), num_frames, num_skipped, num_entries)


def _write_manifest(
    bucket: BucketStore, heads: Sequence[ManifestHead], info: RecordingInfo, keys: KeysOnDisk
) -> None:
    write_rows(
        bucket.objects,
        info,
        heads[0].encoder,
        parts_of(
            (frame for part in _parts(bucket, heads) for frame in part.frames),
            (frame for part in _parts(bucket, heads) for frame in part.skipped),
        ),
        complete=True,
        created_at=now(),
    )
    for number in range(NUM_GROUPS):
        if group := sorted(keys.group(number), key=lambda key: key.raw):
            require_entries(bucket, group, lambda _: None)


def _parts(bucket: BucketStore, heads: Sequence[ManifestHead]) -> Iterator[Part]:
    for head in heads:
        yield from read_parts(bucket.objects, str(head.path))


def _whole(bucket: BucketStore, selector: str, say: Callable[[str], None]) -> list[ManifestHead]:
    """Return the newest list of each shard of a recording, in order; raise unless all fit together."""

    def read(name: str) -> ManifestHead | None:
        try:
            return read_head(bucket.objects, name)
        except StoreError as error:  # as if it were missing
            say(f"warning: {error}")
            return None

    with ThreadPoolExecutor(_NUM_READERS) as threads:
        found = list(threads.map(read, head_names(bucket.objects, SHARDS)))
    heads = sorted(
        (head for head in found if head is not None),
        key=lambda head: (head.created_at, head.complete, head.path),
    )
    recordings = [head.recording for head in heads]
    id_ = recordings[-1].id if heads and selector == "latest" else matching_recording(selector, recordings)
    ours = [head for head in heads if head.recording.id == id_]
    if not ours:
        raise NotEncodedError(
            f"no shard of {selector!r} is in {bucket.objects.address}: encode it with --shard 1/8, … first"
        )
    newest, num_shards = ours[-1], _shard_of(ours[-1])[1]
    lists = {
        _shard_of(head)[0]: head
        for head in ours
        if head.encoder == newest.encoder and _shard_of(head)[1] == num_shards
    }
    wrong = [
        words
        for number in range(1, num_shards + 1)
        if (words := _problem(lists.get(number), (number, num_shards), newest.recording))
    ]
    if wrong:
        more = f" and {len(wrong) - _NUM_NAMED} more" if len(wrong) > _NUM_NAMED else ""
        raise NotEncodedError(
            f"{newest.recording.id} cannot be merged yet: shard {', '.join(wrong[:_NUM_NAMED])}{more}; run "
            f"seeonce encode with --shard {wrong[0].split()[0]} again"
        )
    return [lists[number] for number in range(1, num_shards + 1)]


def _problem(head: ManifestHead | None, shard: tuple[int, int], info: RecordingInfo) -> str:
    """Say what keeps a shard from being merged; empty when nothing does."""
    name = f"{shard[0]}/{shard[1]}"
    if head is None:
        return f"{name} is missing"
    if replace(head.recording, captured_at=info.captured_at) != info:
        return f"{name} is of another state of the recording"
    num_done, num_frames = head.num_frames + head.num_skipped, len(shard_range(shard, info.num_frames))
    return "" if head.complete and num_done == num_frames else f"{name} has {num_done} of {num_frames} frames"


def _shard_of(head: ManifestHead) -> tuple[int, int]:
    number, _, num_shards = head.path.parent.name.partition("of")
    return int(number), int(num_shards)


def _gone(bucket: BucketStore, keys: KeysOnDisk) -> set[EntryKey]:
    gone = set[EntryKey]()
    for number in range(NUM_GROUPS):
        if group := keys.group(number):
            gone |= group - bucket.existing(group)
    return gone


def _lacking(bucket: BucketStore, heads: Sequence[ManifestHead], gone: set[EntryKey]) -> str:
    names = [
        "/".join(map(str, _shard_of(head)))
        for head in heads
        if any(frame.key in gone for part in _parts(bucket, [head]) for frame in part.frames)
    ]
    return (
        f"{heads[0].recording.id} cannot be merged: {counted(len(gone), 'entry')} of shard "
        f"{', '.join(names[:_NUM_NAMED])}{', …' if len(names) > _NUM_NAMED else ''} went away: run seeonce "
        f"encode with --shard {names[0]} again"
    )


def _newest_manifest(bucket: BucketStore, like: ManifestHead) -> ManifestHead | None:
    """Return the head of the manifest that counts now for the recording and the encoder of a shard."""
    folder = f"{RECORDINGS}/{like.recording.id}/{like.encoder_id.hex}"
    names = sorted(head_names(bucket.objects, folder))
    return read_head(bucket.objects, names[-1]) if names else None
