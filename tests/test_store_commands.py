"""The commands that look after the store, as typed."""

import os
import time
from pathlib import Path

import pytest
from conftest import Run
from store_samples import entry_folder, manifest, new_store, write

from cache.leases import held_lease
from cache.manifest import write_manifest
from cache.store import Store

LONG_AGO_S = time.time() - 3 * 86400


@pytest.fixture
def store(home: Path) -> Store:
    """A store of three entries, two of them named by a recording, all of them old."""
    store = new_store(home.parent)
    for number in range(3):
        os.utime(entry_folder(store, write(store, number)), (LONG_AGO_S, LONG_AGO_S))
    write_manifest(store.home, manifest(2))
    return store


def test_ls_lists_recordings_with_frames_and_bytes(run: Run, store: Store) -> None:
    [row] = run("seeonce store ls --json").json
    assert (row["recording"], row["num_frames"], row["num_entries"], row["complete"]) == (
        "a-recording",
        2,
        2,
        True,
    )
    assert row["num_bytes"] > 2 * 384
    assert "a-recording" in run("seeonce store ls").out


def test_ls_lists_entries_and_who_names_them(run: Run, store: Store) -> None:
    assert len(run("seeonce store ls --entries --json").json) == 3
    lines = run("seeonce store ls --entries").out.splitlines()[1:]
    assert sorted(line.split()[-1] for line in lines) == ["-", "a-recording", "a-recording"]


def test_gc_says_what_it_would_remove_and_then_removes_it(run: Run, store: Store) -> None:
    assert run("seeonce store gc --dry-run").out.startswith("would remove 1 entry (2.0 kB)")
    assert len(list(store.keys())) == 3
    assert run("seeonce store gc").out.startswith("removed 1 entry (2.0 kB)")
    assert len(list(store.keys())) == 2
    assert run("seeonce store gc --json").json["num_entries"] == 0


def test_gc_names_the_lease_that_holds_it_off(run: Run, store: Store) -> None:
    with held_lease(store, "encode monday"):
        assert "blocked by: encode monday, since 20" in run("seeonce store gc --dry-run").out
        assert run("seeonce store gc --json").json["leases"][0]["purpose"] == "encode monday"


@pytest.mark.parametrize("command", ["ls", "gc"])
def test_without_a_store_there_is_one_line(run: Run, home: Path, command: str) -> None:
    ended = run(f"seeonce store {command}")
    assert ended.code == 1
    assert "there is no store" in ended.error
    assert not home.exists()
