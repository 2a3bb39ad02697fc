"""Endless repetition is noticed at every period, and tables of distinct rows are left alone."""

import random

import pytest

from infer.sampling import LONGEST_PERIOD, RepetitionWatch, span


def _ends_at(tokens: list[int]) -> int | None:
    """Return after how many tokens the watch ends the answer."""
    watch = RepetitionWatch()
    return next((number for number, token in enumerate(tokens, 1) if watch.seen(token)), None)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 12, 31, 32, 63, 64, 65, 200, LONGEST_PERIOD])
def test_a_block_that_repeats_ends_the_answer_when_its_span_is_reached(period: int) -> None:
    rng = random.Random(period)
    before = [rng.randrange(1000, 2000) for _ in range(40)]
    block = [*range(period - 1), 999]
    assert _ends_at(before + block * 200) == len(before) + span(period)


@pytest.mark.parametrize("seed", range(20))
def test_a_table_whose_rows_differ_in_one_token_is_left_alone(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.randrange(3, 40)
    row = [rng.randrange(50) for _ in range(width)]
    at = rng.randrange(width)
    assert _ends_at([*range(9)] + [
        1000 + number if place == at else token for number in range(200) for place, token in enumerate(row)
    ]) is None  # fmt: skip


def test_rows_that_take_turns_in_a_cell_of_few_values_are_left_alone() -> None:
    rng = random.Random(3)
    rows = [[1, 2, 3, 1000 + rng.randrange(4), 4] for _ in range(400)]
    assert _ends_at([token for row in rows for token in row]) is None


@pytest.mark.parametrize(("block", "times"), [(1, 95), (4, 20), (12, 7), (20, 7), (60, 3)])
def test_a_few_equal_rows_are_left_alone(block: int, times: int) -> None:
    assert _ends_at([500, *([*range(block)] * times), 501]) is None
