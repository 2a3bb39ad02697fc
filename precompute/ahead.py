"""Work done ahead in threads, and handed over in order.

Owns how much is under way at once, so that memory does not grow with what waits, and doing more to it
later. Does not own the threads or the work.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """Items in order with the futures of what is made of them, at most ``num_ahead`` of them under way."""

    def __init__(
        self, pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], num_ahead: int
    ) -> None:
        """Nothing is submitted before the first item is asked for."""
        self._pool, self._work, self._items, self._num_ahead = pool, work, iter(items), num_ahead
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def __iter__(self) -> Iterator[tuple[Item, "Future[Result]"]]:
        """Yield each item; an error of its work is raised by its future."""
        self._submit(self._num_ahead)
        while self._waiting:
            yield self._waiting.popleft()
            self._submit(1)

    def then(self, work: Callable[[Result], Result]) -> None:
        """Have more done to what is under way.

        It waits in a thread for what was submitted before it, which is therefore never kept from one.
        """

        def after(before: "Future[Result]") -> Result:
            return work(before.result())

        self._waiting = deque((item, self._pool.submit(after, before)) for item, before in self._waiting)

    def _submit(self, num_items: int) -> None:
        for item in islice(self._items, num_items):
            self._waiting.append((item, self._pool.submit(self._work, item)))
