"""Work that is done in advance: in order, and never too much at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from precompute.pipeline import prefetch


@pytest.mark.parametrize("num_threads", [1, 4])
def test_items_come_in_order_and_no_more_than_allowed_are_begun(num_threads: int) -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return 10 * item

    with ThreadPoolExecutor(num_threads) as readers, ThreadPoolExecutor(num_threads) as workers:
        found = []
        for item, future in prefetch(range(1, 21), readers, read, workers, divmod, max_pending=3):
            found.append((item, future.result()))
            assert len(begun) <= item + 3
    assert found == [(item, divmod(item, 10 * item)) for item in range(1, 21)]


def test_one_reader_reads_in_order_however_many_work_on_what_it_read() -> None:
    read: list[int] = []
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(8) as workers:
        made = prefetch(range(50), readers, read.append, workers, lambda item, _: item, max_pending=12)
        assert [future.result() for _, future in made] == list(range(50))
    assert read == list(range(50))


def test_an_error_belongs_to_its_item_and_the_others_go_on() -> None:
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(1) as workers:
        made = prefetch([1, 0, 2], readers, lambda item: item, workers, lambda _, n: 6 // n, max_pending=3)
        futures = [future for _, future in made]
    assert futures[0].result() == 6
    with pytest.raises(ZeroDivisionError):
        futures[1].result()
    assert futures[2].result() == 3
