"""A sample spreads over the sizes of pictures, and claims of the whole what the arithmetic allows."""

import random
from dataclasses import replace
from math import comb

import pytest
from store_samples import frame

from seeonce.verifier.sample import Group, confidence, confidence_words, draw

SMALL, LARGE = (1, 4, 4), (1, 8, 8)


def groups(num_small: int, num_large: int) -> list[Group]:
    grids = [SMALL] * num_small + [LARGE] * num_large
    return [[replace(frame(index), grid_thw=grid)] for index, grid in enumerate(grids)]


def test_every_size_is_drawn_and_large_groups_more_often() -> None:
    drawn = draw(groups(90, 10), 20, seed=1)
    sizes = [group[0].grid_thw for group in drawn]
    assert (sizes.count(SMALL), sizes.count(LARGE)) == (18, 2)
    assert len({group[0].key for group in drawn}) == 20


def test_a_seed_draws_the_same_and_another_draws_others() -> None:
    assert draw(groups(90, 10), 20, seed=1) == draw(groups(90, 10), 20, seed=1)
    assert draw(groups(90, 10), 20, seed=1) != draw(groups(90, 10), 20, seed=2)


@pytest.mark.parametrize("size", [None, 100, 1000])
def test_all_are_drawn_when_that_many_are_asked_for(size: int | None) -> None:
    assert draw(groups(90, 10), size, seed=0) == groups(90, 10)


def test_the_words_are_those_of_the_exact_distribution() -> None:
    whole = groups(182, 0)
    found = confidence(whole, draw(whole, 25, seed=0))
    missed = [comb(182 - wrong, 25) / comb(182, 25) for wrong in range(182)]
    assert missed[found.fewer_than - 1] >= 0.05 > missed[found.fewer_than]
    assert confidence_words(found) == "with 95 % confidence fewer than 20 of 182 (11 %) are wrong"


def test_a_size_that_was_not_drawn_may_be_all_wrong() -> None:
    whole = groups(50, 30)
    found = confidence(whole, [group for group in whole if group[0].grid_thw == SMALL])
    assert found.fewer_than == 31


@pytest.mark.parametrize("seed", range(5))
def test_no_way_of_spreading_faults_hides_as_many_as_are_excluded(seed: int) -> None:
    rng = random.Random(seed)
    whole = groups(rng.randint(5, 40), rng.randint(5, 40))
    size = rng.randint(4, 20)
    num_wrong = confidence(whole, draw(whole, size, seed)).fewer_than
    wrong = {group[0].key for group in rng.sample(whole, min(num_wrong, len(whole)))}
    trials = 1000
    missed = sum(
        not any(group[0].key in wrong for group in draw(whole, size, trial)) for trial in range(trials)
    )
    assert missed / trials < 0.05 + 0.02


def test_a_check_of_all_says_so() -> None:
    whole = groups(4, 4)
    assert confidence_words(confidence(whole, whole)) == "all were checked"


def test_too_small_a_sample_says_nothing() -> None:
    whole = groups(2, 0)
    assert "too few" in confidence_words(confidence(whole, whole[:1]))
