"""Processes write same and different keys, others read, one collects: nothing is lost, nothing wrong.

The store begins with entries that nobody names and nobody used for two days. The writers want some of them:
they rely on those that they find, write the others in batches, and name them all in a manifest, as pass one
does.
"""

import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_samples import (
    PROVENANCE,
    SPEC,
    entry_folder,
    features,
    frame,
    manifest,
    new_store,
    pixels,
    same,
    write,
)
from test_store_processes import TESTS

from cache.base.home import Home
from cache.check import check_store
from cache.gc import collect
from cache.leases import held_lease
from cache.manifest import write_manifest
from cache.store import Durability, Store
from precompute.pass_one import write_result
from precompute.pipeline import EncodeResult, Progress

NAMED = range(50_000, 50_020)  # a manifest names these from the beginning
LEFT = range(60_000, 60_020)  # nobody names or wants these
TWO_DAYS_S = 2 * 86400

# --- each of these runs in a process of its own


def opened(home: Path) -> Store:
    return Store.open(Home(home), create=False, durability=Durability.none)


def wait_for_go(store: Store) -> None:
    """Say that this process has started, and wait until all have."""
    (store.home.path / f"ready-{os.getpid()}").touch()
    while not (store.home.path / "go").exists():
        time.sleep(0.001)


def write_and_name(home: Path, seed: int, num_old: int) -> int:
    """Rely on old entries that are there, write all others, name them; return how many were there."""
    store = opened(home)
    wanted = random.Random(seed).sample(range(num_old), num_old // 8)
    own = range(100_000 * (seed + 1), 100_000 * (seed + 1) + 10)
    numbers, draw, num_hits = sorted({*wanted, *own}), random.Random(seed), 0
    left = draw.sample(numbers, len(numbers))
    wait_for_go(store)
    with held_lease(store, f"writer {seed}"):
        while left:
            taken = [left.pop() for _ in range(min(len(left), draw.choice([1, 2, 7])))]
            missing = [number for number in taken if not store.has(frame(number).key)]
            write_together(store, missing)
            num_hits += len(taken) - len(missing)
        made = replace(manifest(0, f"by-{seed}"), frames=tuple(map(frame, numbers)))
        progress = Progress(len(numbers), len(numbers), num_hits, len(numbers) - num_hits, 0, 0)
        write_result(store, EncodeResult(made, progress, interrupted=False), print)
    return num_hits


def write_together(store: Store, numbers: list[int]) -> None:
    """Commit entries in one batch, and read them back."""
    with store.batch() as batch:
        for number in numbers:
            batch.add(pixels(number), SPEC, features(number), PROVENANCE)
        keys = batch.commit()
    for key, number in zip(keys, numbers, strict=True):
        assert same(store.read(key), features(number)), number


def read_on(home: Path, seed: int, num_old: int) -> int:
    """Read until all is done: what is named is always there, and whatever is there is right."""
    store, draw, num_reads = opened(home), random.Random(seed), 0
    wait_for_go(store)
    while not (store.home.path / "stop").exists():
        named = draw.choice(NAMED)
        assert same(store.read(frame(named).key), features(named)), named
        old = draw.randrange(num_old // 4)  # a hit keeps an entry: most are left to the collection
        found = store.read(frame(old).key)
        assert found is None or same(found, features(old)), old
        num_reads += 2
    return num_reads


def collect_on(home: Path) -> tuple[int, int]:
    """Collect until all is done, a few entries at a time; return how many went and how many were spared."""
    import cache.gc

    cache.gc._AT_ONCE = 4
    store, num_removed, num_kept = opened(home), 0, 0
    wait_for_go(store)
    while not (store.home.path / "stop").exists():
        found = collect(store)
        num_removed, num_kept = num_removed + found.num_entries, num_kept + found.num_kept
    return num_removed, num_kept


# ---


def processes(num: int) -> ProcessPoolExecutor:
    """Return so many processes, forked from one that has imported all of this once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(num, mp_context=context)


def crowd(
    tmp_path: Path, num_old: int, num_writers: int, num_readers: int = 2, num_collectors: int = 1
) -> str:
    """Let all of them loose on one store, and check what they leave; return the figures."""
    store = new_store(tmp_path)
    for number in [*range(num_old), *NAMED, *LEFT]:
        used_s = time.time() - TWO_DAYS_S
        os.utime(entry_folder(store, write(store, number)), (used_s, used_s))
    write_manifest(store.home, replace(manifest(0, "named"), frames=tuple(map(frame, NAMED))))
    home = store.home.path
    num_all = num_writers + num_readers + num_collectors
    with processes(num_all) as pool:
        writers = [pool.submit(write_and_name, home, seed, num_old) for seed in range(num_writers)]
        readers = [pool.submit(read_on, home, seed, num_old) for seed in range(num_readers)]
        collectors = [pool.submit(collect_on, home) for _ in range(num_collectors)]
        all_of_them: list[Future[Any]] = [*writers, *readers, *collectors]
        try:
            while len(list(home.glob("ready-*"))) < num_all:
                assert not any(one.done() for one in all_of_them)
                time.sleep(0.01)
            (home / "go").touch()
            wait(writers)
        finally:
            (home / "go").touch()
            (home / "stop").touch()
    num_hits, num_reads = (sum(one.result() for one in them) for them in (writers, readers))
    removed, kept = map(sum, zip(*(one.result() for one in collectors), strict=True))
    assert check_store(store, read_data=True).problems == []
    collect(store)
    assert not any(entry_folder(store, frame(number).key).exists() for number in LEFT)
    for folder in ("tmp", "trash", "quarantine", "leases"):
        assert list((store.path / folder).iterdir()) == []
    assert num_hits, "nobody relied on what was old: that would prove nothing"
    assert removed, "nothing was collected: that would prove nothing"
    return f"{num_old} old: {num_hits} relied on, {removed} collected, {kept} spared; {num_reads} reads"


@pytest.fixture(autouse=True)
def _processes_find_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")


def test_a_crowd_loses_nothing_and_reads_nothing_wrong(tmp_path: Path) -> None:
    print(crowd(tmp_path, 80, num_writers=4, num_readers=1))


@pytest.mark.campaign
@pytest.mark.parametrize("round_", range(5))
def test_large_crowds_lose_nothing_and_read_nothing_wrong(tmp_path: Path, round_: int) -> None:
    print(f"round {round_}: {crowd(tmp_path, 3000, 8, num_collectors=1 + round_ % 2)}", file=sys.stderr)
