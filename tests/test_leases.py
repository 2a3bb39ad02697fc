"""Leases: every doubt counts as an active one."""

import os
import time
from pathlib import Path

import pytest
from store_samples import new_store

from cache.leases import DOUBT_S, LEASE_S, active_leases, expired_leases, held_lease
from cache.store import Store

OF_THE_DEAD = "999999999.0123456789abcdef.0123456789abcdef.json"


def lease_files(store: Store) -> list[Path]:
    return sorted((store.path / "leases").iterdir())


def test_a_lease_says_what_for_and_since_when_and_ends_with_the_block(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    before_s = time.time()
    with held_lease(store, "describe demo"):
        [lease] = active_leases(store.path)
        assert lease.purpose == "describe demo"
        assert before_s - 1 <= lease.since_s <= time.time()
    assert lease_files(store) == []


def test_a_lease_ends_with_an_error_too(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with pytest.raises(ZeroDivisionError), held_lease(store, "encode"):
        raise ZeroDivisionError
    assert lease_files(store) == []


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with held_lease(store, "encode", renew_s=0.01):
        [path] = (path for path in lease_files(store) if not path.name.startswith("."))
        first = path.stat().st_ino
        deadline_s = time.monotonic() + 10
        while path.stat().st_ino == first:  # a renewed one is put in its place at once
            assert time.monotonic() < deadline_s


def taken_over(store: Store) -> Path:
    """Leave the lease of a process that was killed."""
    with held_lease(store, "encode"):
        [path] = lease_files(store)
        content = path.read_bytes()
    dead = path.with_name(OF_THE_DEAD)
    dead.write_bytes(content)
    return dead


def test_the_lease_of_a_killed_process_counts_until_it_expires(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    taken_over(store)
    assert len(active_leases(store.path, time.time() + LEASE_S - 5)) == 1
    assert active_leases(store.path, time.time() + LEASE_S + 5) == []


def test_an_expired_lease_whose_process_lives_counts_for_a_day(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with held_lease(store, "encode"):
        assert len(active_leases(store.path, time.time() + LEASE_S + 5)) == 1
        assert active_leases(store.path, time.time() + LEASE_S + DOUBT_S + 5) == []


def test_when_the_clock_was_put_back_the_lease_protects_everything(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with held_lease(store, "encode"):
        [lease] = active_leases(store.path, time.time() - DOUBT_S)
        assert lease.since_s == float("-inf")


def test_the_lease_of_a_killed_process_whose_clock_was_years_ahead_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    right_s = time.time()
    monkeypatch.setattr(time, "time", lambda: right_s + 3650 * DOUBT_S)
    dead = taken_over(store)
    monkeypatch.undo()
    assert active_leases(store.path) == []
    dead.write_bytes(b"damaged")
    os.utime(dead, (right_s + 3650 * DOUBT_S,) * 2)
    assert active_leases(store.path) == []


def test_a_renewed_lease_begins_no_later_than_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    right_s = time.time()
    monkeypatch.setattr(time, "time", lambda: right_s + DOUBT_S)
    with held_lease(store, "encode", renew_s=0.01):
        monkeypatch.setattr(time, "time", lambda: right_s)
        deadline_s = time.monotonic() + 10
        while active_leases(store.path)[0].since_s == float("-inf"):
            assert time.monotonic() < deadline_s


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00\xff", b'{"metadata_digest":"' + b"0" * 64 + b'","x":1}']
)
def test_a_damaged_lease_protects_everything_for_a_day(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    path = store.path / "leases" / OF_THE_DEAD
    path.write_bytes(content)
    [lease] = active_leases(store.path)
    assert (lease.since_s, lease.purpose) == (float("-inf"), "a lease that cannot be read")
    os.utime(path, (1, 1))
    assert active_leases(store.path) == []


def test_a_lease_that_cannot_be_read_protects_everything(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (store.path / "leases" / OF_THE_DEAD).symlink_to("/nowhere")
    assert [lease.since_s for lease in active_leases(store.path)] == [float("-inf")]


def test_only_what_stopped_to_count_a_day_ago_is_removed(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    dead = taken_over(store)
    assert expired_leases(store.path) == []
    dead.write_bytes(b"damaged")
    os.utime(dead, (1, 1))
    assert expired_leases(store.path) == [OF_THE_DEAD]


def test_a_read_only_store_gets_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    store = new_store(tmp_path)
    with held_lease(store, "describe"):
        assert lease_files(store) == []


def test_a_disk_that_takes_no_lease_stops_nobody(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (store.path / "leases").rmdir()
    (store.path / "leases").touch()
    with held_lease(store, "describe"):
        pass
