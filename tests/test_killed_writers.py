"""Writers killed at every step and at any time: what was acknowledged is there, nothing torn is visible.

A few dozen always, hundreds in the campaign.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_samples import SPEC, features, new_store, pixels, same

from cache.commit import CommitStep
from cache.key import EntryKey, entry_key
from cache.store import Store

TESTS = Path(__file__).parent
FIRST = 1_000_000  # between two writers: none ever writes so many
ONCE = (CommitStep.groups_synced, CommitStep.acknowledged)


class Killer:
    """The driver, and a look at the store after each kill."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
        command = [sys.executable, str(TESTS / "kill_driver.py"), str(folder)]
        self._driver = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.store: Store = new_store(folder)
        self.num_writers = self.num_acknowledged = 0
        self._right: set[EntryKey] = set()

    def close(self) -> None:
        self._driver.communicate()

    def kill(self, how: str, *words: object) -> tuple[list[int], set[EntryKey]]:
        """Run a writer to its death; return the numbers it acknowledged and the keys it made visible."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        first = FIRST * self.num_writers
        self._driver.stdin.write(" ".join(map(str, (how, first, *words))) + "\n")
        self._driver.stdin.flush()
        acknowledged = [int(word) for word in self._driver.stdout.readline().split()]
        self.num_writers += 1
        self.num_acknowledged += len(acknowledged)
        visible = set(self.store.keys()) - self._right
        self._look(visible, acknowledged, first)
        self._right |= visible
        return acknowledged, visible

    def _look(self, visible: set[EntryKey], acknowledged: list[int], first: int) -> None:
        numbers = range(first, first + len(acknowledged) + 8)
        known = {entry_key(pixels(number), SPEC.encoder_id): number for number in numbers}
        assert {known[key] for key in visible} >= set(acknowledged)
        for key in visible:
            assert self.store.check(key) is None
            assert same(self.store.read(key), features(known[key]))

    def all_are_right_still(self) -> bool:
        return set(self.store.keys()) == self._right and not any(map(self.store.check, self._right))


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[Killer]:
    made = Killer(tmp_path)
    yield made
    made.close()


def test_a_writer_killed_at_any_step_of_a_batch_leaves_whole_entries(killer: Killer) -> None:
    steps = [(step, at) for step in CommitStep for at in range(1, 2 if step in ONCE else 4)]
    for step, at in steps:
        acknowledged, visible = killer.kill("step", step, at)
        assert acknowledged == []
        assert len(visible) == (at if step == CommitStep.renamed else 3 if step in ONCE else 0)
    print(f"killed at each of {len(steps)} failpoints of a batch of three: nothing torn, nothing lost")
    assert killer.all_are_right_still()


@pytest.mark.parametrize("num_kills", [20, pytest.param(300, marks=pytest.mark.campaign)])
def test_writers_killed_at_random_times_keep_what_they_acknowledged(killer: Killer, num_kills: int) -> None:
    chance = random.Random(num_kills)
    for _ in range(num_kills):
        killer.kill("time", chance.uniform(0, 0.06))
    num_torn = len(list((killer.store.path / "tmp").iterdir()))
    print(
        f"{num_kills} kills at random times: {killer.num_acknowledged} entries acknowledged, all right; "
        f"{num_torn} unfinished ones under tmp/, none visible"
    )
    assert killer.all_are_right_still()
    assert killer.num_acknowledged
    assert num_torn, "no writer was killed in the middle of a commit: that would prove nothing"
