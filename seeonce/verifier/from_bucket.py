"""verify-cache of a bucket: a sample is copied as it is, and the copy is checked like any store."""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cache.base.errors import CannotCheckError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore, chunk_name, metadata_name
from cache.entry import CHUNK_NAME, MAX_METADATA_BYTES, METADATA_NAME, DamagedError
from cache.key import EntryKey
from cache.layout import entry_folder
from cache.store import Durability, Store
from seeonce.runs.recording import find_in_bucket, select
from seeonce.verifier.levels import VerifyOptions, sampled
from seeonce.verifier.report import Level, Report
from seeonce.verifier.verify import verify

_MAX_CHUNK_BYTES = 5 << 30


def verify_bucket(home: Home, bucket: BucketStore, options: VerifyOptions, listener: Listener) -> Report:
    """Check a sample of the entries of a recording in a bucket, bytes first; ``home`` names the model.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not there, or not encoded by this model's vision tower.
        StoreError: the bucket cannot be read.
    """
    if options.level is Level.bytes and options.model is None and not options.controls:
        manifest = bucket.read_manifest(find_in_bucket(bucket, options.recording)[0])
    else:
        selected = select(home, options.recording, options.model, listener.say, bucket=bucket)
        manifest, options = selected.manifest, replace(options, model=selected.model)
    if not manifest.frames:
        raise CannotCheckError(f"{manifest.recording.id} has no encoded frame in {bucket.objects.address}.")
    options = replace(options, recording=manifest.recording.id, sample_only=True)
    with tempfile.TemporaryDirectory(prefix="seeonce-verify-") as name:
        store = Store.open(Home(Path(name) / "home"), durability=Durability.none)
        _copy(bucket, store, (group[0].key for group in sampled(manifest, options)))
        store.write_manifest(manifest)
        return verify(store.home, options, listener)


def _copy(bucket: BucketStore, store: Store, keys: Iterable[EntryKey]) -> None:
    """Copy both objects of each entry, damaged ones too: the check is to find that."""
    for key in keys:
        folder = Path(entry_folder(store.path, key))
        folder.mkdir(mode=0o700, parents=True)
        for name, there, max_bytes in (
            (METADATA_NAME, metadata_name(key), MAX_METADATA_BYTES + 1),
            (CHUNK_NAME, chunk_name(key), _MAX_CHUNK_BYTES),
        ):
            with suppress(DamagedError):  # too large, and so missing
                if (raw := bucket.objects.get(there, max_bytes)) is not None:
                    (folder / name).write_bytes(raw)
