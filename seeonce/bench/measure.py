"""Timing of several ways of doing one thing: in turn, warmed up, with median and spread.

They run in turn in one process, so that a machine that grows slower while it is measured is slower for all.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` (0.0 to 1.0) of the values do not exceed."""
    return sorted(values)[round(share * (len(values) - 1))]


@dataclass(frozen=True, slots=True)
class Measured(Generic[Outcome]):
    """One way of doing the work: its wall times in seconds, and the outcome of its last repetition."""

    name: str
    seconds: tuple[float, ...]
    outcome: Outcome

    @property
    def median_s(self) -> float:
        """The median, which one disturbed repetition does not move."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far apart the fastest and the slowest are, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_s


@dataclass(frozen=True, slots=True)
class Clock:
    """How often everything is repeated; ``say`` takes a line for each repetition."""

    num_repetitions: int
    say: Callable[[str], None] = lambda _: None
    num_warm_ups: int = 1

    def alternate(
        self, ways: Mapping[str, Callable[[], Outcome]], clean: Callable[[], None] = lambda: None
    ) -> list[Measured[Outcome]]:
        """Run every way in turn, ``num_warm_ups`` times untimed and then ``num_repetitions`` times.

        ``clean`` is called after each round, untimed.
        """
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        outcomes: dict[str, Outcome] = {}
        for repetition in range(-self.num_warm_ups, self.num_repetitions):
            number = "warm-up" if repetition < 0 else f"{repetition + 1} of {self.num_repetitions}"
            for name, run in ways.items():
                started = time.perf_counter()
                outcomes[name] = run()
                took_s = time.perf_counter() - started
                if repetition >= 0:
                    seconds[name].append(took_s)
                self.say(f"  {number}: {name}, {took_s:.3g} s")
            clean()
        return [Measured(name, tuple(seconds[name]), outcomes[name]) for name in ways]
