"""The store behaves as a dict that forgets what was damaged."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_samples import (
    PROVENANCE,
    SPEC,
    entry_files,
    entry_folder,
    features,
    flip_bit,
    new_store,
    pixels,
    same,
    write,
)

from cache.base.home import Home
from cache.commit import CommitBatch
from cache.key import EntryKey, entry_key
from cache.store import Durability, Store

NUMBERS = st.integers(0, 4)


def key_of(number: int) -> EntryKey:
    return entry_key(pixels(number), SPEC.encoder_id)


class StoreAgainstDict(RuleBasedStateMachine):
    """Entries are written, damaged, removed, repaired and read; the dict holds the undamaged ones."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = new_store(self.folder)
        self.good: dict[int, bytes] = {}
        self.batch: CommitBatch | None = None
        self.added: list[int] = []

    @rule(number=NUMBERS)
    def write(self, number: int) -> None:
        write(self.store, number)
        self.good[number] = features(number).array.tobytes()

    @precondition(lambda self: self.batch is None)
    @rule()
    def begin_a_batch(self) -> None:
        self.batch, self.added = self.store.batch(), []

    @precondition(lambda self: self.batch is not None)
    @rule(number=NUMBERS)
    def add_to_the_batch(self, number: int) -> None:
        assert self.batch is not None
        self.batch.add(pixels(number), SPEC, features(number), PROVENANCE)
        self.added.append(number)

    @precondition(lambda self: self.batch is not None)
    @rule()
    def commit_the_batch(self) -> None:
        assert self.batch is not None
        with self.batch as batch:
            assert batch.commit() == tuple(map(key_of, self.added))
        self.good |= {number: features(number).array.tobytes() for number in self.added}
        self.batch = None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def give_the_batch_up(self) -> None:
        assert self.batch is not None
        with self.batch:
            pass
        self.batch = None

    @rule(number=NUMBERS, which=st.integers(0, 1), position=st.integers(0, 10_000))
    def flip(self, number: int, which: int, position: int) -> None:
        if self.good.pop(number, None):
            path = entry_files(self.store, key_of(number))[which]
            flip_bit(path, position % (8 * path.stat().st_size))

    @rule(number=NUMBERS, which=st.integers(0, 1), share=st.floats(0, 0.99))
    def cut(self, number: int, which: int, share: float) -> None:
        if self.good.pop(number, None):
            path = entry_files(self.store, key_of(number))[which]
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    @rule(number=NUMBERS, other=NUMBERS)
    def put_another_in_its_place(self, number: int, other: int) -> None:
        if number != other and {number, other} <= self.good.keys():
            del self.good[number]
            shutil.rmtree(entry_folder(self.store, key_of(number)))
            shutil.copytree(entry_folder(self.store, key_of(other)), entry_folder(self.store, key_of(number)))

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        shutil.rmtree(entry_folder(self.store, key_of(number)), ignore_errors=True)
        self.good.pop(number, None)

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        found = self.store.read(key_of(number))
        assert (found.array.tobytes() if found else None) == self.good.get(number)
        assert found is None or same(found, features(number))

    @rule(number=NUMBERS)
    def repair(self, number: int) -> None:
        """Encode again what a read does not give, as pass one does."""
        if self.store.read(key_of(number)) is None:
            self.write(number)
        assert same(self.store.read(key_of(number)), features(number))

    @rule(durability=st.sampled_from([Durability.none, Durability.none, Durability.batch]))
    def open_again(self, durability: Durability) -> None:
        self.store = Store.open(Home(self.folder / "home"), durability=durability)

    @invariant()
    def good_entries_are_listed_and_there(self) -> None:
        good = {key_of(number) for number in self.good}
        assert good <= set(self.store.keys())
        assert all(self.store.check(key) is None for key in good)

    @invariant()
    def only_good_entries_pass_a_check(self) -> None:
        passing = {key for key in self.store.keys() if self.store.check(key) is None}  # noqa: SIM118
        assert passing == {key_of(number) for number in self.good}

    @invariant()
    def only_a_batch_under_way_has_anything_under_tmp(self) -> None:
        waiting = self.batch.num_entries if self.batch else 0
        assert len(list((self.store.path / "tmp").iterdir())) == waiting

    def teardown(self) -> None:
        if self.batch:
            self.give_the_batch_up()
        shutil.rmtree(self.folder)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.campaign
def test_two_hundred_long_histories_agree_with_a_dict() -> None:
    run_state_machine_as_test(
        StoreAgainstDict, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )
    print("200 random histories of up to 40 steps (writes, batches, damage, repair, reopening): as a dict")
