"""What ``seeonce store`` prints of a store: its numbers, and what became of its entries."""

import time
from collections.abc import Sequence

from cache.base.home import Home
from cache.base.text import counted, megabytes
from cache.bucket_upkeep import BucketCollection
from cache.check import CheckReport, RepairReport
from cache.forget import Forgotten
from cache.gc import Collection
from cache.layout import time_text
from cache.manifest import StoredRecording
from cache.mirror import Transferred
from cache.stats import StoreStats

_RUNS_SHOWN = 5


def stats_table(home: Home, stats: StoreStats) -> str:
    """Return the numbers of a store."""
    reclaimable = "0 kB"
    if found := stats.reclaimable:
        reclaimable = f"{megabytes(found.num_bytes)} in {counted(found.num_entries, 'entry')}"
    elif stats.num_entries:
        reclaimable = "nothing: a manifest cannot be read, see seeonce store check"
    rows = [
        ("store", str(home.store)),
        ("entries", f"{stats.num_entries:,} ({megabytes(stats.num_bytes)})"),
        ("recordings", f"{stats.num_recordings:,}"),
        ("frames", f"{stats.num_frames:,} named, {stats.num_shared:,} shared"),
        ("saved by sharing", megabytes(stats.num_bytes_saved)),
        ("named by no recording", f"{stats.num_unreferenced:,}"),
        ("in quarantine", f"{stats.num_quarantined:,}"),
        ("unfinished or left over", f"{stats.num_tmp:,}"),
        ("gc would free", reclaimable),
        ("prefix cache", f"{stats.num_prefixes:,} ({megabytes(stats.prefix_bytes)})"),
        ("free on the disk", megabytes(stats.free_bytes)),
    ]
    for row in stats.encoders:
        name = f"encoder {row.encoder_id.hex[:12]}"
        rows.append((name, f"{row.num_entries:,} ({megabytes(row.num_bytes)}), {row.label}"))
    for use in stats.runs[:_RUNS_SHOWN]:
        words = f"{use.num_hits:,} hits, {use.num_misses:,} misses, {use.at[:16]}, {use.recording}"
        rows.append((f"last {use.kind}", words))
    return "\n".join(f"{name:<24}{value}" for name, value in rows)


def collection_text(found: Collection) -> str:
    """Say what a collection removed, or would remove."""
    verb = "would remove" if found.dry_run else "removed"
    lines = [
        f"{verb} {counted(found.num_entries, 'entry')} ({megabytes(found.num_bytes)}), "
        f"{found.num_tmp:,} unfinished, "
        f"{found.num_trash:,} in trash, {found.num_quarantined:,} in quarantine for 30 days, "
        f"{counted(found.num_thumbnails, 'thumbnail')}, {_prefixes(found.num_prefixes)} "
        f"({megabytes(found.prefix_bytes)}), {found.num_files:,} other files."
    ]
    if found.num_kept:
        lines.append(f"{counted(found.num_kept, 'entry')} kept: needed again meanwhile.")
    for lease in found.leases:
        is_known = 0 < lease.since_s <= time.time()
        since = f"since {time_text(lease.since_s)}" if is_known else "since nobody knows when"
        lines.append(f"blocked by: {lease.purpose}, {since}")
    return "\n".join(lines)


def forgetting_text(chosen: Sequence[tuple[StoredRecording, int]], *, done: bool) -> str:
    """Say which recordings go, the least recently used first."""
    verb = "forgot" if done else "would forget"
    lines = [
        f"{verb} {recording.id}, last used {time_text(recording.used_s)}, {megabytes(num_bytes)}"
        for recording, num_bytes in chosen
    ]
    size = megabytes(sum(num_bytes for _, num_bytes in chosen))
    what = "go once nobody has used them for 24 hours" if done else "would be free; --yes forgets them"
    return "\n".join(
        [*lines, f"{counted(len(chosen), 'recording')}, {size}: {what}."]
        if chosen
        else ["no recording to forget."]
    )


def forgotten_text(found: Forgotten, *, purge: bool) -> str:
    """Say what of a recording is gone."""
    line = f"{found.recording}: {found.num_manifests:,} manifests removed"
    if not purge:
        of_its = f"of its {counted(found.num_left, 'entry')}"
        return f"{line}; {of_its}, those that nothing else needs go with a later gc."
    left = ""
    if found.num_left:
        left = (
            f" {counted(found.num_left, 'entry')} left in place: others name them, or a running command does."
        )
    return (
        f"{line}, {counted(found.num_entries, 'entry')} ({megabytes(found.num_bytes)}), "
        f"{counted(found.num_thumbnails, 'thumbnail')}, {found.num_quarantined:,} in quarantine, "
        f"{counted(found.num_runs, 'run')}, {_prefixes(found.num_prefixes)}, "
        f"the memory of {counted(found.num_files, 'file')}.{left}"
    )


def _prefixes(number: int) -> str:
    return "1 prefix" if number == 1 else f"{number:,} prefixes"


def check_text(found: CheckReport) -> str:
    """Say what a check found, a line for each problem."""
    lines = [f"{problem.kind:<8} {problem.what}: {problem.reason}" for problem in found.problems]
    how = "every byte" if found.read_data else "metadata and length"
    before = f", {found.num_resumed:,} before" if found.num_resumed else ""
    verdict = (
        f"{len(found.problems):,} problems; see seeonce store repair" if found.problems else "no problem"
    )
    if found.interrupted:
        verdict += "; interrupted; run the same command to go on" if found.read_data else "; interrupted"
    size = f" ({megabytes(found.num_bytes)})" if found.read_data else ""
    return "\n".join(
        [*lines, f"checked {how} of {counted(found.num_entries, 'entry')}{size}{before}: {verdict}."]
    )


def repair_text(found: RepairReport) -> str:
    """Say what was repaired, a line for each problem that remains."""
    lines = [f"{problem.kind:<8} {problem.what}: {problem.reason}" for problem in found.remaining]
    done = (
        f"{found.num_quarantined:,} damaged entries moved to quarantine, {found.num_encoded:,} encoded again"
    )
    end = "; interrupted; run the same command to go on" if found.interrupted else ""
    return "\n".join([*lines, f"{done}, {len(found.remaining):,} problems remain{end}."])


def transferred_text(found: Transferred, verb: str) -> str:
    """Say what went over, a line for each recording that did not."""
    end = "; interrupted; run the same command to go on" if found.interrupted else ""
    return "\n".join(
        [
            *found.missing,
            f"{verb} {counted(found.num_entries, 'entry')} ({megabytes(found.num_bytes)}), "
            f"{found.num_there:,} there before, {counted(len(found.recordings), 'manifest')}{end}.",
        ]
    )


def bucket_collection_text(found: BucketCollection) -> str:
    """Say what a collection in a bucket removed, or would remove."""
    verb = "would remove" if found.dry_run else "removed"
    return (
        f"{verb} {counted(found.num_entries, 'entry')} ({megabytes(found.num_bytes)}) and "
        f"{counted(found.num_manifests, 'older manifest')}; {found.num_marked:,} newly found to be needed by "
        f"no recording, to go in 7 days; {found.num_kept:,} needed again."
    )
