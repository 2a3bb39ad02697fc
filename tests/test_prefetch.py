"""Work that is done in advance: in order, never too much at once, and with more done to it on the way."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from precompute.encode import Prefetch


@pytest.mark.parametrize("num_threads", [1, 4])
def test_items_come_in_order_and_no_more_than_allowed_are_begun(num_threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return 10 * item

    with ThreadPoolExecutor(num_threads) as pool:
        found = []
        for item, future in Prefetch(pool, work, range(20), max_pending=3):
            found.append((item, future.result()))
            assert len(begun) <= item + 3
    assert found == [(item, 10 * item) for item in range(20)]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_more_is_done_once_to_all_that_is_under_way(num_threads: int) -> None:
    with ThreadPoolExecutor(num_threads) as pool:
        prefetch = Prefetch(pool, lambda item: [item], range(6), max_pending=3)
        found = []
        for item, future in prefetch:
            if item == 0:
                prefetch.then(lambda before: [*before, -1])
            found.append(future.result())
    assert found == [[0], [1, -1], [2, -1], [3], [4], [5]]


def test_an_error_belongs_to_its_item_and_the_others_go_on() -> None:
    with ThreadPoolExecutor(1) as pool:
        prefetch = Prefetch(pool, partial(divmod, 6), [1, 0, 2], max_pending=3)
        futures = []
        for item, future in prefetch:
            futures.append(future)
            if item == 1:
                prefetch.then(lambda before: before)
    assert futures[0].result() == (6, 0)
    with pytest.raises(ZeroDivisionError):
        futures[1].result()
    assert futures[2].result() == (3, 0)
