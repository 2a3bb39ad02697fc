"""A disk that refuses any one call, or every call from one on: a clear error, and a store that is right."""

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from fault_disk import Disk
from store_samples import PROVENANCE, SPEC, features, new_store, pixels, same, write

from cache.base.errors import SeeonceError, disk_error
from cache.base.home import Home
from cache.commit import CommitStep
from cache.entry import Features
from cache.key import entry_key
from cache.store import Durability, Store

KEYS = {entry_key(pixels(number), SPEC.encoder_id): number for number in range(4)}
CASES = [
    pytest.param(
        error, for_good, id=f"{errno.errorcode[error]} {'from then on' if for_good else 'once'}", marks=marks
    )
    for error, for_good, marks in (
        (errno.ENOSPC, True, ()),
        (errno.EIO, False, ()),
        (errno.ENOSPC, False, pytest.mark.campaign),
        (errno.EIO, True, pytest.mark.campaign),
    )
]
cases = pytest.mark.parametrize(("error", "for_good"), CASES)


def write_two(store: Store) -> None:
    with store.batch() as batch:
        for number in (1, 2):
            batch.add(pixels(number), SPEC, features(number), PROVENANCE)
        batch.commit()


def told(work: Callable[[], object]) -> str:
    """Return the error of ours that work ends with, else nothing; any other error passes."""
    try:
        work()
    except SeeonceError as error:
        return str(error)
    return ""


def visible(store: Store) -> set[int]:
    """Return which entries there are; each must be right."""
    for key in list(store.keys()):
        assert same(store.read(key), features(KEYS[key]))
    return {KEYS[key] for key in store.keys()}  # noqa: SIM118


def calls_until(step: CommitStep, folder: Path) -> int:
    """Count the calls of a write that comes through, up to a step of it."""
    disk, at = Disk(folder), []
    store = Store.open(
        new_store(folder).home,
        durability=Durability.batch,
        on_step=lambda now: at.append(len(disk.calls)) if now == step else None,
    )
    write(store, 0)
    with disk.watching():
        write_two(store)
    return at[-1]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "nothing can be written to that disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "check the permissions of /runs"),
        (sqlite3.OperationalError("database or disk is full"), "free some space"),
        (OSError(errno.EIO, "Input/output error"), "check the disk"),
    ],
)
def test_a_refusal_advises_what_helps_against_it(error: Exception, advice: str) -> None:
    said = str(disk_error(Path("/runs"), "The run cannot be written", error))
    assert advice in said
    assert ("set SEEONCE_HOME to a folder that you can write to" in said) == ("permissions of" in said)
    assert ("free some space" in said) == ("space" in str(error) or "full" in str(error))


@cases
def test_a_write_that_is_refused_any_call_says_so_and_leaves_the_store_right(
    tmp_path: Path, error: int, for_good: bool
) -> None:
    num_calls = calls_until(CommitStep.acknowledged, tmp_path / "count")
    for call in range(num_calls):
        store = new_store(tmp_path / str(call))
        write(store, 0)
        durable = replace(store, durability=Durability.batch)
        with Disk(tmp_path, fail_at=call, fails_for_good=for_good, error=error).watching():
            message = told(partial(write_two, durable))
        assert "entry" in message
        assert "check the disk" in message or "free some space" in message
        assert for_good or list((store.path / "tmp").iterdir()) == []
        assert visible(store) >= {0}
        write_two(store)
        assert visible(store) == {0, 1, 2}
    print(f"{errno.errorcode[error]} at each of {num_calls} calls of a write: always said, store right")
    assert num_calls > 40


@cases
def test_a_store_whose_making_is_refused_any_call_is_made_the_next_time(
    tmp_path: Path, error: int, for_good: bool
) -> None:
    with patch("cache.layout._GROUPS", ("00",)):
        with Disk(tmp_path).watching() as disk:
            Store.open(Home(tmp_path / "count"))
        for call in range(len(disk.calls)):
            home = Home(tmp_path / str(call))
            with Disk(tmp_path, fail_at=call, fails_for_good=for_good, error=error).watching():
                message = told(partial(Store.open, home))
            assert "cannot" in message or (home.store / "store.json").exists()
            store = Store.open(home, durability=Durability.none)
            assert same(store.read(write(store, 1)), features(1))
    assert len(disk.calls) > 20


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM, errno.EMFILE], ids=errno.errorcode.get)
def test_a_read_that_is_refused_any_call_gives_the_entry_or_nothing(tmp_path: Path, error: int) -> None:
    store = new_store(tmp_path)
    for call in range(5):
        key = write(store)
        found: list[Features | None] = []
        with Disk(tmp_path, fail_at=call, error=error).watching() as disk:
            message = told(lambda key=key, found=found: found.append(store.read(key)))  # type: ignore[misc]
        assert len(disk.calls) > call
        assert "cannot read entry" in message or found == [None] or same(found[0], features(0))
