"""The check of a store in a bucket, and the collection of what its manifests no longer name.

The bucket may hold more keys than memory: they are sorted into 256 groups on the local disk, and looked at
group by group. Of times only the server's own count.
"""

import tempfile
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from cache.base.errors import StoreError
from cache.base.text import counted
from cache.bucket import BucketStore, chunk_name, key_of_folder, marker_name, metadata_name
from cache.bucket_manifests import head_names, part_names, read_head, read_keys
from cache.check import CheckReport, Problem, in_subset
from cache.entry import METADATA_NAME
from cache.gc import OnProgress
from cache.key import DIGEST_BYTES, EntryKey
from cache.layout import FRAMES, RECORDINGS, SHARDS, TRASH, group_name
from cache.objects import Objects

GRACE_S = 7 * 24 * 3600  # between the marker of a collection and the removal
_SETTLE_S = 5.0
NUM_GROUPS = 256
_WAITING_BYTES = 64 << 10  # of each group
_NUM_THREADS = 16
_NUM_REPAIRS = 3


class KeysOnDisk:
    """Keys by their group, in a temporary folder; use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="seeonce-keys-")
        self._waiting = [bytearray() for _ in range(NUM_GROUPS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._folder.cleanup()

    def add(self, keys: Iterable[EntryKey]) -> None:
        """Add keys; some may be there already."""
        for key in keys:
            self._waiting[key.raw[0]] += key.raw
            if len(self._waiting[key.raw[0]]) >= _WAITING_BYTES:
                self._flush(key.raw[0])

    def group(self, number: int) -> set[EntryKey]:
        """Return the keys of one group."""
        self._flush(number)
        raw = self._path(number).read_bytes()
        return {EntryKey(raw[at : at + DIGEST_BYTES]) for at in range(0, len(raw), DIGEST_BYTES)}

    def _flush(self, number: int) -> None:
        with self._path(number).open("ab") as file:
            file.write(self._waiting[number])
        self._waiting[number].clear()

    def _path(self, number: int) -> Path:
        return Path(self._folder.name, f"{number:02x}")


def check_bucket(
    bucket: BucketStore,
    *,
    read_data: bool = False,
    subset: tuple[int, int] = (1, 1),
    on_progress: OnProgress = lambda _done, _all: None,
) -> CheckReport:
    """Check manifests, metadata and lengths, and with ``read_data`` every byte; nothing is changed.

    Raises:
        StoreError: the bucket cannot be read.
    """
    report = CheckReport(read_data=read_data)
    with KeysOnDisk() as named, ThreadPoolExecutor(_NUM_THREADS) as threads:
        for name in head_names(bucket.objects):
            try:
                _add_named(bucket.objects, name, named)
            except StoreError as error:
                report.problems.append(Problem("manifest", name, str(error)))
        try:
            for number in range(NUM_GROUPS):
                wanted = {key for key in named.group(number) if in_subset(key, subset)}
                there = {
                    key: sum(files.values())
                    for key, files in _sizes(bucket.objects, number).items()
                    if METADATA_NAME in files and in_subset(key, subset)
                }
                for key in wanted - there.keys():
                    report.problems.append(Problem("missing", key.hex, "named by a manifest; no such entry"))
                checked = threads.map(lambda key: bucket.check(key, payload=read_data), there)
                for key, problem in zip(there, checked, strict=True):
                    report.num_entries += 1
                    report.num_bytes += there[key] if read_data else 0
                    if problem is not None:
                        report.problems.append(Problem("damaged", key.hex, problem))
                on_progress(number + 1, NUM_GROUPS)
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            report.interrupted = True
    return report


@dataclass(slots=True)
class BucketCollection:
    """What a collection did, or would do: entries marked, removed, and no longer marked since they are named.

    ``num_manifests`` are older ones of a recording that has a newer one.
    """

    dry_run: bool
    num_entries: int = 0
    num_bytes: int = 0
    num_marked: int = 0
    num_kept: int = 0
    num_manifests: int = 0


def collect_bucket(
    bucket: BucketStore,
    *,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
    on_progress: OnProgress = lambda _done, _all: None,
) -> BucketCollection:
    """Mark the entries that no manifest names, and remove those that have been marked for 7 days.

    Half an entry that nobody finished is treated like a whole one. Several may collect at once,
    and be killed.

    Raises:
        StoreError: a manifest cannot be read, so that nobody knows what it names; or the bucket refuses.
    """
    objects, report = bucket.objects, BucketCollection(dry_run)
    now_s = time.time() if dry_run else _server_time_s(objects)
    with KeysOnDisk() as named, KeysOnDisk() as due, KeysOnDisk() as named_since:
        manifests = _add_all_named(objects, named)
        for number in range(NUM_GROUPS):
            wanted, sizes, markers = named.group(number), _sizes(objects, number), _markers(objects, number)
            for key in (sizes.keys() | markers.keys()) - wanted:
                if key not in markers:
                    report.num_marked += 1
                    if not dry_run:
                        objects.put_new(marker_name(key), b"")
                elif now_s - markers[key] >= grace_s:
                    due.add([key])
            _unmark(objects, markers.keys() & wanted, report)
            on_progress(number + 1, 2 * NUM_GROUPS)
        # A manifest that was written meanwhile is seen now; of a later one the writer removes the markers.
        _add_all_named(objects, named_since, but=manifests)
        for number in range(NUM_GROUPS):
            if keys := due.group(number):
                sizes, wanted = _sizes(objects, number), named_since.group(number)
                _unmark(objects, keys & wanted, report)
                for key in keys - wanted:
                    _remove(objects, key, sizes.get(key, {}), report)
            on_progress(NUM_GROUPS + number + 1, 2 * NUM_GROUPS)
    _remove_old_manifests(objects, now_s - grace_s, report)
    return report


def require_entries(
    bucket: BucketStore,
    keys: Sequence[EntryKey],
    write_again: Callable[[Sequence[EntryKey]], object],
    settle_s: float = _SETTLE_S,
) -> None:
    """Hold the entries of a manifest that was just written against a collection that had not seen it.

    Their markers are removed, and what it took already is given to ``write_again``.

    Raises:
        StoreError: entries are missing nonetheless.
    """
    wanted, gone, groups = set(keys), set[EntryKey](), {group_name(key) for key in keys}
    folder = f"{TRASH}/{groups.pop()}" if len(groups) == 1 else TRASH
    for _ in range(_NUM_REPAIRS):
        if marked := wanted.intersection(key_of_folder(item["path"]) for item in bucket.objects.list(folder)):
            for key in marked:
                bucket.objects.delete(marker_name(key))
            time.sleep(settle_s)  # it may have looked at a marker a moment before
        gone = wanted - bucket.existing(wanted)
        if not gone:
            return
        write_again(sorted(gone, key=lambda key: key.raw))
    raise StoreError(
        f"{bucket.objects.address}: {counted(len(gone), 'entry')} of this manifest went away while it was "
        "written: run the same command again, and let no collection run meanwhile"
    )


def _remove(objects: Objects, key: EntryKey, sizes: dict[str, int], report: BucketCollection) -> None:
    if objects.head(marker_name(key)) is None:  # the writer of a manifest needs it
        report.num_kept += 1
        return
    report.num_entries += METADATA_NAME in sizes
    report.num_bytes += sum(sizes.values())
    if not report.dry_run:
        for name in (metadata_name(key), chunk_name(key), marker_name(key)):
            objects.delete(name)


def _unmark(objects: Objects, keys: Iterable[EntryKey], report: BucketCollection) -> None:
    for key in keys:
        report.num_kept += 1
        if not report.dry_run:
            objects.delete(marker_name(key))


def _add_all_named(objects: Objects, named: KeysOnDisk, but: Container[str] = ()) -> set[str]:
    """Add what manifests name, ``but`` those, which never change; return the manifests' names."""
    manifests = {name for name in head_names(objects) if name not in but}
    for name in manifests:
        try:
            _add_named(objects, name, named)
        except StoreError as error:
            if (
                objects.head(name) is not None
            ):  # else another collection removed it, since it was not the newest
                raise StoreError(
                    f"nothing is collected, since nobody knows what this names: {error}"
                ) from None
    return manifests


def _add_named(objects: Objects, name: str, named: KeysOnDisk) -> None:
    read_head(objects, name)
    named.add(read_keys(objects, name))


def _remove_old_manifests(objects: Objects, before_s: float, report: BucketCollection) -> None:
    """Remove what is old: heads but the newest, parts that no head names, lists of shards."""
    heads: dict[str, list[str]] = {}
    for name in head_names(objects):
        heads.setdefault(name.rpartition("/")[0], []).append(name)
    old = {name for names in heads.values() for name in sorted(names)[:-1]}
    parts = {
        part
        for names in heads.values()
        for name in names
        if name not in old
        for part in part_names(objects, name)
    }
    for item in objects.list(RECORDINGS):
        name = item["path"]
        is_part = name.rpartition("/")[2].startswith("part.")
        if _time_s(item) < before_s and (name in old or (is_part and name not in parts)):
            report.num_manifests += name in old
            if not report.dry_run:
                objects.delete(name)
    for item in objects.list(SHARDS):
        if _time_s(item) < before_s and not report.dry_run:
            objects.delete(item["path"])


def _sizes(objects: Objects, number: int) -> dict[EntryKey, dict[str, int]]:
    """Return what lies in a group: of each key the names and bytes."""
    found: dict[EntryKey, dict[str, int]] = {}
    for item in objects.list(f"{FRAMES}/{number:02x}"):
        *_, folder, name = item["path"].split("/")
        if (key := key_of_folder(folder)) is not None:
            found.setdefault(key, {})[name] = item["size"]
    return found


def _markers(objects: Objects, number: int) -> dict[EntryKey, float]:
    items = objects.list(f"{TRASH}/{number:02x}")
    return {key: _time_s(item) for item in items if (key := key_of_folder(item["path"])) is not None}


def _time_s(item: Any) -> float:
    modified: datetime = item["last_modified"]
    return modified.timestamp()


def _server_time_s(objects: Objects) -> float:
    """Return the server's time: that of an object that is put for it."""
    name = f"{TRASH}/clock"
    objects.delete(name)
    objects.put_new(name, b"")
    found = objects.head(name)
    objects.delete(name)
    return time.time() if found is None else _time_s(found)
