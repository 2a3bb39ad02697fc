"""Timing of several ways of doing one thing: alternating, warmed up, median and spread.

Owns the clock. Every ratio of the benchmark compares medians that were taken in turn in one process, so
that a machine that grows slower while it is measured is slower for all.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of one contestant, in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median, which one disturbed repetition does not move."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far apart the fastest and the slowest are, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_s

    def quantile_s(self, share: float) -> float:
        """Return the time that ``share`` (0.0 to 1.0) of the times do not exceed."""
        ordered = sorted(self.seconds)
        return ordered[round(share * (len(ordered) - 1))]


@dataclass(frozen=True, slots=True)
class Contestant(Generic[Outcome]):
    """One way of doing the work; ``run`` returns what it came to, so that it can be checked."""

    name: str
    run: Callable[[], Outcome]


@dataclass(frozen=True, slots=True)
class Measured(Generic[Outcome]):
    """A contestant's times, and the outcome of its last repetition."""

    name: str
    timing: Timing
    outcome: Outcome


def _nothing() -> None:
    """Leave everything as it is."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How often everything is repeated, and who is told of each repetition."""

    num_repetitions: int
    say: Callable[[str], None] = lambda _: None
    num_warm_ups: int = 1

    def alternate(
        self, contestants: Sequence[Contestant[Outcome]], clean: Callable[[], None] = _nothing
    ) -> list[Measured[Outcome]]:
        """Run every contestant in turn, ``num_warm_ups`` times untimed and then ``num_repetitions`` times.

        ``clean`` is called after each round, untimed.
        """
        seconds: list[list[float]] = [[] for _ in contestants]
        outcomes: list[Outcome | None] = [None for _ in contestants]
        for repetition in range(-self.num_warm_ups, self.num_repetitions):
            for number, contestant in enumerate(contestants):
                started = time.perf_counter()
                outcome = contestant.run()
                took = time.perf_counter() - started
                outcomes[number] = outcome
                if repetition >= 0:
                    seconds[number].append(took)
                self.say(f"  {self._name(repetition)}: {contestant.name}, {took:.3g} s")
            clean()
        return [
            Measured(contestant.name, Timing(tuple(times)), outcome)  # type: ignore[arg-type]
            for contestant, times, outcome in zip(contestants, seconds, outcomes, strict=True)
        ]

    def _name(self, repetition: int) -> str:
        return "warm-up" if repetition < 0 else f"{repetition + 1} of {self.num_repetitions}"
