"""Work done ahead: in order, never too much of it at once, and more can be done to it on the way."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from precompute.encode import Ahead


@pytest.mark.parametrize("num_threads", [1, 4])
def test_items_come_in_order_and_no_more_than_allowed_are_begun(num_threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return 10 * item

    with ThreadPoolExecutor(num_threads) as pool:
        found = []
        for item, future in Ahead(pool, work, range(20), num_ahead=3):
            found.append((item, future.result()))
            assert len(begun) <= item + 3
    assert found == [(item, 10 * item) for item in range(20)]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_more_is_done_once_to_all_that_is_under_way(num_threads: int) -> None:
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = Ahead(pool, lambda item: [item], range(6), num_ahead=3)
        found = []
        for item, future in ahead:
            if item == 0:
                ahead.then(lambda before: [*before, -1])
            found.append(future.result())
    assert found == [[0], [1, -1], [2, -1], [3], [4], [5]]


def test_an_error_belongs_to_its_item_and_the_others_go_on() -> None:
    with ThreadPoolExecutor(1) as pool:
        ahead = Ahead(pool, partial(divmod, 6), [1, 0, 2], num_ahead=3)
        futures = []
        for item, future in ahead:
            futures.append(future)
            if item == 1:
                ahead.then(lambda before: before)
    assert futures[0].result() == (6, 0)
    with pytest.raises(ZeroDivisionError):
        futures[1].result()
    assert futures[2].result() == (3, 0)
