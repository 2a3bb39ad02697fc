"""How ``seeonce store …`` prints what it found, for a human.

Owns: the words. Does not own: the numbers, nor their JSON (``seeonce.commands.store``).
"""

import time
from collections.abc import Mapping, Sequence

from cache.checking import CheckReport
from cache.collecting import Collection
from cache.forgetting import Forgotten, ToForget
from cache.home import Home
from cache.inventory import StoredEntry
from cache.key import EntryKey
from cache.listing import StoredRecording, time_text
from cache.repairing import RepairReport
from cache.sizes import megabytes
from cache.stats import StoreStats

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
