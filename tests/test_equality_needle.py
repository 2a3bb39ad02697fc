"""A needle: the same request, alone and anywhere among others, gives the same tokens."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from asked_live import Asked, mixed_parts
from conftest import MAX_PIXELS, MakeCheckpoint
from tiny_checkpoint import Tiny

from cache.entry import Features
from cache.manifest import FrameEntry
from infer.limits import BatchLimits
from infer.request import Request
from infer.sampling import Sampling

NEEDLE = 1000
ALWAYS, CAMPAIGN = range(1), range(1, 60)


class Haystack:
    """One request that is looked for, and other traffic."""

    def __init__(self, checkpoint: Path, root: Path) -> None:
        self.asked = Asked(checkpoint, root, 9)
        self.needle = self.asked.request(NEEDLE, self.asked.frames[0], "Which app is open?", max_tokens=8)
        self.alone = self.asked.want([self.needle])[0]

    def draw(self, rng: random.Random) -> tuple[list[Request], BatchLimits]:
        """Draw up to 31 others of any shape and length, and a place among them for the needle."""
        frames = list(self.asked.frames)
        requests = [
            self.asked.request(number, *mixed_parts(rng, frames), max_tokens=rng.randint(1, 8))
            for number in range(rng.randint(1, 31))
        ]
        requests.insert(rng.randint(0, len(requests)), self.needle)
        limits = BatchLimits(32, rng.randint(1, 8), rng.choice([16, 64, 256, 2048]))
        return requests, replace(limits, share_prefixes=rng.random() < 0.5)


@pytest.fixture(scope="module")
def haystack(checkpoint_of: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Haystack:
    return Haystack(checkpoint_of(Tiny(max_pixels=MAX_PIXELS)), tmp_path_factory.mktemp("needle"))


@pytest.mark.parametrize(
    "seed", [*ALWAYS, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in CAMPAIGN)]
)
def test_a_request_gives_the_same_tokens_wherever_it_stands(haystack: Haystack, seed: int) -> None:
    requests, limits = haystack.draw(random.Random(seed))
    assert haystack.asked.run(requests, limits).answers[NEEDLE].tokens == haystack.alone


class Exchanged:
    """The control: DeepStack of two frames of one size is exchanged, merged tokens are right."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._other = {asked.frames[0].key: asked.frames[8], asked.frames[8].key: asked.frames[0]}

    def features(self, frame: FrameEntry) -> Features:
        own = self._asked.source.features(frame)
        if frame.key not in self._other:
            return own
        array = own.array.copy()
        array[1:] = self._asked.source.features(self._other[frame.key]).array[1:]
        return replace(own, array=array)


def test_exchanged_deepstack_rows_are_noticed(haystack: Haystack) -> None:
    asked = haystack.asked
    others = [asked.request(n, frame, "What now?") for n, frame in enumerate(asked.frames)]
    requests = [*others, haystack.needle]
    limits = BatchLimits(32, 4, 64)
    assert asked.run(requests, limits).answers[NEEDLE].tokens == haystack.alone
    changed = asked.run(requests, limits, source=Exchanged(asked)).answers
    assert changed[NEEDLE].tokens != haystack.alone
    want = asked.want(others)
    differing = [n for n in range(len(others)) if changed[n].tokens != want[n]]
    assert differing == [0, 8]


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_neighbours_that_leave_at_once_change_nothing(haystack: Haystack, num_tokens: int) -> None:
    def many() -> Iterator[Request]:
        for number in range(31):
            frame = haystack.asked.frames[number % 9]
            request = haystack.asked.request(number, frame, f"{number}?")
            yield replace(request, sampling=Sampling(max_tokens=num_tokens))

    requests = [*many(), haystack.needle]
    assert haystack.asked.run(requests, BatchLimits(5, 3, 64)).answers[NEEDLE].tokens == haystack.alone
