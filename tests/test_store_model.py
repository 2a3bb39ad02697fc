"""The store behaves as a dict that forgets what was damaged."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_samples import SPEC, entry_files, entry_folder, features, flip_bit, new_store, pixels, same, write

from cache.key import entry_key

NUMBERS = st.integers(0, 4)


class StoreAgainstDict(RuleBasedStateMachine):
    """Entries are written, damaged, removed and read; the dict holds the undamaged ones."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = new_store(self.folder)
        self.good: set[int] = set()

    @rule(number=NUMBERS)
    def write(self, number: int) -> None:
        write(self.store, number)
        self.good.add(number)

    @rule(number=NUMBERS, which=st.integers(0, 1), position=st.integers(0, 10_000))
    def flip(self, number: int, which: int, position: int) -> None:
        if number in self.good:
            path = entry_files(self.store, entry_key(pixels(number), SPEC.encoder_id))[which]
            flip_bit(path, position % (8 * path.stat().st_size))
            self.good.remove(number)

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        shutil.rmtree(
            entry_folder(self.store, entry_key(pixels(number), SPEC.encoder_id)), ignore_errors=True
        )
        self.good.discard(number)

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        found = self.store.read(entry_key(pixels(number), SPEC.encoder_id))
        assert same(found, features(number)) == (number in self.good)
        assert found is None or number in self.good

    @rule()
    def open_again(self) -> None:
        self.store = new_store(self.folder)

    @invariant()
    def good_entries_are_listed_and_there(self) -> None:
        good = {entry_key(pixels(number), SPEC.encoder_id) for number in self.good}
        assert good <= set(self.store.keys())
        assert all(self.store.check(key) is None for key in good)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
