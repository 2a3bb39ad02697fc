"""A power cut after any system call: what was acknowledged is there, what is visible is whole.

``fault_disk`` records what the store asks of the system and builds what a filesystem may have kept. A
few random outcomes always, many in the campaign. The control: leave out any one fsync of a commit, and the
same checks must object.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from fault_disk import Acknowledged, Disk, Event, Kept, Synced, chances, survivors
from store_samples import PROVENANCE, SPEC, entry_folder, features, manifest, pixels, same

from cache.base.errors import SeeonceError
from cache.base.home import Home
from cache.commit import CommitStep
from cache.gc import CollectStep, collect
from cache.key import EntryKey, entry_key
from cache.manifest import list_manifests, read_manifest, write_manifest
from cache.store import Durability, Store

NUM_ENTRIES = 3
KEYS = {entry_key(pixels(number), SPEC.encoder_id): number for number in range(NUM_ENTRIES)}
DURABLE = (Durability.batch, pytest.param(Durability.full, marks=pytest.mark.campaign))

Chance = tuple[Callable[[], bool], Callable[[], Kept]]

# Two outcomes find every fsync that is missing: names are lost, or names are kept without their data.
NAMES_LOST: Chance = (lambda: False, lambda: Kept.all)
DATA_LOST: Chance = (lambda: True, lambda: Kept.nothing)
DATA_ZEROED: Chance = (lambda: True, lambda: Kept.zeros)
HARSHEST = (NAMES_LOST, DATA_LOST, DATA_ZEROED)


@dataclass(frozen=True, slots=True)
class Named:
    """A manifest that names these entries was acknowledged."""

    keys: tuple[EntryKey, ...]


def commit(disk: Disk, store: Store, *numbers: int) -> None:
    with store.batch() as batch:
        for number in numbers:
            batch.add(pixels(number), SPEC, features(number), PROVENANCE)
        for key in batch.commit():
            disk.acknowledge(key)


def a_new_store(disk: Disk, durability: Durability) -> None:
    """The store is made, then three entries come as a batch, then the manifest that names them."""
    home = Home(disk.root)
    store = Store.open(home, durability=durability)
    disk.watched = len(disk.events)  # the making of a store syncs some folders more often than it needs
    commit(disk, store, *range(NUM_ENTRIES))
    write_manifest(home, manifest(NUM_ENTRIES), durability)
    disk.acknowledge(Named(tuple(KEYS)))


def a_store_that_another_process_just_made(disk: Disk, durability: Durability) -> None:
    """Its folders are there, but nothing of them is durable when the second process commits."""
    home = Home(disk.root)
    Store.open(home, durability=Durability.none)
    commit(disk, Store.open(home, durability=durability), *range(NUM_ENTRIES))


def entries_that_another_process_just_wrote(disk: Disk, durability: Durability) -> None:
    """They are visible and not durable; ours find their places taken, and are acknowledged."""
    home = Home(disk.root)
    Store.open(home, durability=durability)
    disk.settle()
    commit(Disk(disk.root), Store.open(home, durability=Durability.none), *range(NUM_ENTRIES))

    def on_step(step: CommitStep) -> None:
        if step == CommitStep.folder_synced:  # our own files: they are not needed, as we shall see
            disk.watched = len(disk.events)

    commit(disk, Store.open(home, durability=durability, on_step=on_step), *range(NUM_ENTRIES))


def hits_that_another_process_just_wrote(disk: Disk, durability: Durability) -> None:
    """Pass one finds them, makes them durable, and then names them."""
    home = Home(disk.root)
    store = Store.open(home, durability=durability)
    disk.settle()
    commit(Disk(disk.root), Store.open(home, durability=Durability.none), *range(NUM_ENTRIES))
    store.make_durable(KEYS)
    write_manifest(home, manifest(NUM_ENTRIES), durability)
    disk.acknowledge(Named(tuple(KEYS)))


SCENARIOS: dict[str, Callable[[Disk, Durability], None]] = {
    scenario.__name__: scenario
    for scenario in (
        a_new_store,
        a_store_that_another_process_just_made,
        entries_that_another_process_just_wrote,
        hits_that_another_process_just_wrote,
    )
}


@pytest.fixture
def after() -> Iterator[Path]:
    """Where the stores that a power cut leaves are built: thousands of small files, in memory if we may."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder) / "after"


def recorded(tmp_path: Path, scenario: str, durability: Durability) -> Disk:
    (tmp_path / "home").mkdir()
    groups = sorted({key.hex[:2] for key in KEYS})
    with patch("cache.layout._GROUPS", groups), Disk(tmp_path / "home").watching() as disk:
        SCENARIOS[scenario](disk, durability)
    return disk


def objections(disk: Disk, events: list[Event], chance: Chance, folder: Path, whole: bool) -> list[str]:
    """Cut the power after these events, and say what the store that is left has wrong.

    What another process wrote without fsync may be damaged: it must be a miss. Else it must be ``whole``.
    """
    survivors(disk, events, folder, *chance)
    acknowledged = [event.what for event in events if isinstance(event, Acknowledged)]
    try:
        return _wrong(Home(folder), acknowledged, whole)
    finally:
        shutil.rmtree(folder)


def _wrong(home: Home, acknowledged: list[Any], whole: bool) -> list[str]:
    try:
        store = Store.open(home, create=False)
    except SeeonceError:
        return ["the store is gone"] if acknowledged else []
    found = {key: store.read(key) for key in list(store.keys())}
    right = {key for key, read in found.items() if same(read, features(KEYS[key]))}
    false = {key for key, read in found.items() if key not in right and (whole or read is not None)}
    in_manifest = [frame.key for ref in list_manifests(home) for frame in read_manifest(ref.path).frames]
    named = [key for what in acknowledged if isinstance(what, Named) for key in what.keys]
    return [
        *(f"acknowledged, not there: {what}" for what in acknowledged if what in KEYS and what not in right),
        *(f"visible, not right: {key}" for key in false),
        *(f"named, not there: {key}" for key in in_manifest if key not in right),
        *(f"no longer named: {key}" for key in named if key not in in_manifest),
    ]


@pytest.mark.parametrize("durability", DURABLE)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(("step", "num_random"), [(5, 1), pytest.param(1, 10, marks=pytest.mark.campaign)])
def test_a_power_cut_after_any_call_takes_nothing_that_was_acknowledged(
    tmp_path: Path, after: Path, scenario: str, durability: Durability, step: int, num_random: int
) -> None:
    disk = recorded(tmp_path, scenario, durability)
    num_outcomes = 0
    for cut in range(len(disk.events), -1, -step):
        random_ones = [chances(1000 * cut + seed) for seed in range(num_random)]
        for chance in [*HARSHEST, *random_ones]:
            whole = scenario == "a_new_store"
            assert objections(disk, disk.events[:cut], chance, after, whole) == []
            num_outcomes += 1
    print(f"{scenario}, {durability}: {len(disk.events)} events, {num_outcomes} outcomes, all right")


def test_a_home_that_was_just_made_survives_as_well(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with patch("cache.layout._GROUPS", ()), Disk(tmp_path / "disk").watching() as disk:
        commit(disk, Store.open(Home(disk.root / "new" / "home")), *range(NUM_ENTRIES))
    survivors(disk, disk.events, tmp_path / "after", *NAMES_LOST)
    store = Store.open(Home(tmp_path / "after" / "new" / "home"), create=False)
    assert all(same(store.read(key), features(number)) for key, number in KEYS.items())


def test_a_power_cut_takes_nothing_that_a_collection_put_back(tmp_path: Path, after: Path) -> None:
    """The move away may be kept, and the move back lost."""
    home = Home(tmp_path / "home")
    home.path.mkdir()

    def name_them(step: CollectStep) -> None:
        if step == CollectStep.moved:
            write_manifest(home, manifest(NUM_ENTRIES))

    with patch("cache.layout._GROUPS", ()), Disk(home.path).watching() as disk:
        store = Store.open(home)
        commit(disk, store, *range(NUM_ENTRIES))
        for key in KEYS:
            os.utime(entry_folder(store, key), (1, 1))
        assert collect(store, on_step=name_them).num_kept == NUM_ENTRIES
    for seed in range(30):
        assert objections(disk, disk.events, chances(seed), after, whole=True) == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_fsync_of_a_commit_is_needed(tmp_path: Path, after: Path, scenario: str) -> None:
    """The control: a checker that never objects proves nothing."""
    disk = recorded(tmp_path, scenario, Durability.batch)
    synced = [at for at, event in enumerate(disk.events) if isinstance(event, Synced) and at >= disk.watched]
    needless = [at for at in synced if not _noticed(disk, at, after)]
    print(f"{scenario}: {len(synced)} fsyncs left out in turn, {len(synced) - len(needless)} noticed")
    assert len(synced) > 3 * NUM_ENTRIES
    assert needless == []


def _noticed(disk: Disk, left_out: int, folder: Path) -> bool:
    events = [event for at, event in enumerate(disk.events) if at != left_out]
    return any(
        objections(disk, events[:cut], chance, folder, whole=False)
        for cut in range(len(events), left_out - 1, -1)
        for chance in HARSHEST
    )


def test_without_fsync_a_power_cut_takes_what_was_acknowledged(tmp_path: Path, after: Path) -> None:
    disk = recorded(tmp_path, "a_new_store", Durability.none)
    assert any(objections(disk, disk.events, chance, after, whole=True) for chance in HARSHEST)
