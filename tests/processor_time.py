"""What work costs, in seconds of the processor: what else the machine does at the time does not count."""

import time
from collections.abc import Callable


def processor_s(work: Callable[[], object], num_times: int = 3) -> float:
    """Return the shortest of several times, in the program and in the system."""
    found = []
    for _ in range(num_times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)
