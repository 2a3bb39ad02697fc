"""What the upkeep of many entries costs: bounded in seconds, and the same per entry for few and for many.

Seconds are those of the processor, in the program and in the system: the files lie in memory, and what else
the machine does at the time does not count.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from processor_time import processor_s
from store_samples import entry_folder, manifest, new_store, write

from cache.gc import collect
from cache.key import EntryKey
from cache.layout import stored_entries
from cache.manifest import stored_recordings, write_manifest
from cache.stats import store_stats
from cache.store import Store


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds for all entries of a store."""

    num_entries: int
    has_s: float
    stats_s: float
    stats_unnamed_s: float
    ls_s: float
    gc_s: float
    removal_s: float

    def per_entry(self) -> dict[str, float]:
        """Return microseconds an entry; not of the removal, which is the disk's and takes place once."""
        names = ("has_s", "stats_s", "stats_unnamed_s", "ls_s", "gc_s")
        return {name: getattr(self, name) / self.num_entries * 1e6 for name in names}


def listed(store: Store) -> None:
    stored_recordings(store.home)
    sorted(stored_entries(store.path), key=lambda entry: entry.used_s)


def costs(tmp_path: Path, num_entries: int) -> Costs:
    store = new_store(tmp_path / str(num_entries))
    keys: list[EntryKey] = [write(store, number) for number in range(num_entries)]
    write_manifest(store.home, manifest(num_entries))
    has_s = processor_s(lambda: [store.has(key) for key in keys])
    stats_s, ls_s = processor_s(lambda: store_stats(store.home)), processor_s(lambda: listed(store))
    shutil.rmtree(store.path / "recordings" / "a-recording")
    stats_unnamed_s = processor_s(lambda: store_stats(store.home))
    for key in keys:
        os.utime(entry_folder(store, key), (1, 1))
    gc_s = processor_s(lambda: collect(store, dry_run=True))
    removal_s = processor_s(lambda: collect(store), num_times=1)
    assert list(store.keys()) == []
    return Costs(num_entries, has_s, stats_s, stats_unnamed_s, ls_s, gc_s, removal_s)


def told(few: Costs, many: Costs) -> dict[str, float]:
    """Print the figures and return how much more an entry costs among many."""
    ratios = {name: many.per_entry()[name] / cost for name, cost in few.per_entry().items()}
    print(f"\n{many}\nmicroseconds an entry: {many.per_entry()}\namong {few.num_entries} = 1: {ratios}")
    return ratios


def test_an_entry_costs_the_same_among_few_and_many(tmp_path: Path) -> None:
    ratios = told(costs(tmp_path, 40), costs(tmp_path, 240))
    assert max(ratios.values()) < 3


@pytest.mark.campaign
def test_ten_thousand_entries_are_looked_through_in_a_second_or_two(tmp_path: Path) -> None:
    many = costs(tmp_path, 10_000)
    ratios = told(costs(tmp_path, 100), many)
    assert many.stats_s < 2
    assert max(many.has_s, many.stats_unnamed_s) < 3  # both parse the metadata of each
    assert max(ratios.values()) < 3
