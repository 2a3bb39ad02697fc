"""The prefix cache on disk: nothing wrong is ever read, it stays within its bound, and may go at any time."""

import errno
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fault_disk import Disk
from prefix_driver import NUM_KEYS
from prefix_samples import NUM_BYTES, entry, is_right, key, prefix_store, write
from store_samples import flip_bit

from cache.base.errors import InputError
from cache.base.home import Home
from cache.entry import CHUNK_NAME
from cache.prefixes import (
    METADATA_NAME,
    PrefixStore,
    collect_prefixes,
    prefix_cache_bytes,
    prefix_totals,
    stored_prefixes,
)
from cache.quarantine import quarantined

TESTS = Path(__file__).parent
ONE = NUM_BYTES + 1000  # about what one takes on disk


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return prefix_store(tmp_path)


def _folder(store: PrefixStore, number: int) -> Path:
    return store.path / "frames" / key(number).hex[:2] / key(number).hex


def test_what_is_kept_is_read_bit_for_bit_and_private(store: PrefixStore) -> None:
    assert not is_right(store, 1)
    assert write(store, 1)
    assert store.has(key(1))
    assert is_right(store, 1)
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in store.path.rglob("*") if path.is_file()}
    folders = {
        stat.S_IMODE(path.lstat().st_mode) for path in [store.path, *store.path.rglob("*")] if path.is_dir()
    }
    assert (modes, folders) == ({0o600}, {0o700})


def test_every_flipped_bit_is_a_miss_and_goes_to_quarantine(store: PrefixStore) -> None:
    chance = random.Random(5)
    for _ in range(40):
        write(store, 1)
        path = _folder(store, 1) / chance.choice([CHUNK_NAME, METADATA_NAME])
        flip_bit(path, chance.randrange(path.stat().st_size * 8))
        assert not is_right(store, 1)
        assert not store.has(key(1))
    assert len(quarantined(store.path)) == 40


def _cut(folder: Path) -> None:
    os.truncate(folder / CHUNK_NAME, 100)


def _replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "longer": lambda folder: os.truncate(folder / CHUNK_NAME, NUM_BYTES + 5),
    "no payload": lambda folder: (folder / CHUNK_NAME).unlink(),
    "no metadata": lambda folder: (folder / METADATA_NAME).unlink(),
    "a symlink": lambda folder: _replace(folder, CHUNK_NAME, lambda path: path.symlink_to("/dev/zero")),
    "a fifo": lambda folder: _replace(folder, CHUNK_NAME, os.mkfifo),
    "a folder": lambda folder: _replace(folder, METADATA_NAME, Path.mkdir),
    "no JSON": lambda folder: (folder / METADATA_NAME).write_bytes(b"{" * 5000),
    "huge metadata": lambda folder: os.truncate(folder / METADATA_NAME, 1 << 40),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_prefix_is_a_miss_and_another_takes_its_place(store: PrefixStore, how: str) -> None:
    write(store, 1)
    HOSTILE[how](_folder(store, 1))
    assert not is_right(store, 1)
    assert write(store, 1)
    assert is_right(store, 1)


def test_a_prefix_that_claims_another_size_is_refused_before_it_is_read(store: PrefixStore) -> None:
    write(store, 1, num_bytes=1 << 20)
    assert store.read(key(1), NUM_BYTES) is None
    assert not store.has(key(1))


def test_a_prefix_under_the_name_of_another_is_no_hit(store: PrefixStore) -> None:
    write(store, 1)
    write(store, 2)
    _folder(store, 1).rename(_folder(store, 1).with_name("aside"))
    _folder(store, 2).rename(_folder(store, 1))
    assert not is_right(store, 1)


def test_a_file_where_a_prefix_should_be_harms_nobody(store: PrefixStore) -> None:
    _folder(store, 1).parent.mkdir()
    _folder(store, 1).write_text("a file")
    write(store, 1)
    assert not is_right(store, 1)
    assert write(store, 1)
    assert is_right(store, 1)


def test_nothing_is_followed_out_of_it(store: PrefixStore, tmp_path: Path) -> None:
    write(store, 1)
    store.path.rename(tmp_path / "elsewhere")
    store.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="prefixes"):
        store.prepare()
    assert prefix_totals(_home(store)) == (0, 0)
    assert collect_prefixes(_home(store), frozenset()) == (0, 0)
    assert (tmp_path / "elsewhere" / "frames" / "00").is_dir()


def _home(store: PrefixStore) -> Home:
    return Home(store.path.parent)


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path: Path) -> None:
    store = prefix_store(tmp_path, 4 * ONE)
    for number in range(4):
        write(store, number)
        _age(store, number, 100 - number)
    assert is_right(store, 0)  # used now: 1 is the oldest from here on
    write(store, 4)
    assert [number for number in range(5) if store.has(key(number))] == [0, 2, 3, 4]
    for number in range(5, 30):
        write(store, number)
        assert prefix_totals(_home(store))[1] <= store.max_bytes


def _age(store: PrefixStore, number: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(_folder(store, number), (then, then))


def test_one_that_is_larger_than_the_bound_is_not_kept_and_costs_no_other(tmp_path: Path) -> None:
    store = prefix_store(tmp_path, 2 * ONE)
    write(store, 1)
    assert not write(store, 2, num_bytes=3 * ONE)
    assert is_right(store, 1)


def test_what_is_damaged_counts_and_goes_before_what_is_good(tmp_path: Path) -> None:
    store = prefix_store(tmp_path, 2 * ONE)
    for number in (1, 2):
        write(store, number)
    flip_bit(_folder(store, 1) / CHUNK_NAME, 99)
    assert not is_right(store, 1)
    write(store, 3)
    assert quarantined(store.path) == []
    assert is_right(store, 2)


def test_a_smaller_bound_holds_from_the_next_run_on(tmp_path: Path) -> None:
    store = prefix_store(tmp_path)
    for number in range(5):
        write(store, number)
    prefix_store(tmp_path, 2 * ONE)
    assert len(stored_prefixes(store.path)) == 2


def test_gc_takes_what_is_over_frames_that_nobody_names(store: PrefixStore) -> None:
    for number in range(3):
        write(store, number)
    flip_bit(_folder(store, 2) / METADATA_NAME, 99)
    needed = frozenset({entry(0), entry(1), entry(1000)})
    young = time.time() - 3600
    assert collect_prefixes(_home(store), frozenset(), before_s=young) == (0, 0)
    assert collect_prefixes(_home(store), needed, dry_run=True)[0] == 1  # 2 cannot be read
    assert collect_prefixes(_home(store), needed)[0] == 1
    assert collect_prefixes(_home(store), needed - {entry(1)})[0] == 1
    assert is_right(store, 0)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_full_disk_at_any_call_leaves_nothing_wrong(tmp_path: Path, for_good: bool) -> None:
    store = prefix_store(tmp_path)
    write(store, 1)
    counted = Disk(tmp_path)
    with counted.watching():
        write(store, 2)
    for at in range(len(counted.calls)):
        disk = Disk(tmp_path, fail_at=at, fails_for_good=for_good, error=errno.ENOSPC)
        with disk.watching(), suppress(OSError):
            write(store, 100 + at)
        assert is_right(store, 1)
        is_right(store, 100 + at)
    # A disk that refuses even to open a folder lets nothing be removed: that goes once this process has.
    assert for_good or list((store.path / "tmp").iterdir()) == []


def test_an_unwritable_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("a file")
    with pytest.raises(OSError, match="prefixes"):
        prefix_store(tmp_path)


def test_two_writers_of_one_prefix_leave_one(store: PrefixStore) -> None:
    assert write(store, 1)
    assert write(store, 1)
    assert len(stored_prefixes(store.path)) == 1
    assert list((store.path / "tmp").iterdir()) == []


def test_a_size_is_read_from_the_option_or_else_from_the_environment() -> None:
    assert prefix_cache_bytes(None, {}) == 0
    assert prefix_cache_bytes(None, {"SEEONCE_PREFIX_CACHE": "60GB"}) == 60 * 10**9
    assert prefix_cache_bytes("0", {"SEEONCE_PREFIX_CACHE": "60GB"}) == 0
    with pytest.raises(InputError, match="SEEONCE_PREFIX_CACHE is"):
        prefix_cache_bytes(None, {"SEEONCE_PREFIX_CACHE": "much"})


@pytest.mark.parametrize("num_kills", [5, pytest.param(300, marks=pytest.mark.campaign)])
def test_users_killed_at_any_time_leave_nothing_wrong(tmp_path: Path, num_kills: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    max_bytes = 20 * ONE
    drivers = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "prefix_driver.py"), str(tmp_path), str(max_bytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    chance, num_torn = random.Random(num_kills), 0
    for number in range(-(-num_kills // 2)):
        for driver in drivers:  # two processes at once, each killed on its own
            assert driver.stdin is not None
            driver.stdin.write(f"{2 * number + (driver is drivers[1])} {chance.uniform(0.01, 0.12)}\n")
            driver.stdin.flush()
        for driver in drivers:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "\n"
        num_torn += len(list((tmp_path / "prefixes" / "tmp").iterdir()))
    for driver in drivers:
        driver.communicate()
    store = prefix_store(tmp_path, max_bytes)
    num_right = sum(is_right(store, number) for number in range(NUM_KEYS))
    print(f"{num_kills} kills of two users at once: {num_right} prefixes, all right; {num_torn} unfinished")
    if num_kills >= 100:
        assert num_right
        assert num_torn, "no user was killed as it wrote: that would prove nothing"
    assert quarantined(store.path) == []
    assert list((store.path / "tmp").iterdir()) == []
