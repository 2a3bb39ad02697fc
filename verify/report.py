"""What verify-cache reports: levels, checks, and who is told meanwhile. Types only."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Level(StrEnum):
    """How much is proven; each level includes those before it."""

    bytes = "bytes"
    embeddings = "embeddings"
    outputs = "outputs"


class Listener(Protocol):
    """Who is told how the check goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int, what: str = ..., unit: str = ...) -> None:
        """Learn what comes next and how much of it."""

    def advance(self, num_done: int = 1) -> None:
        """Take note of what is done."""


@dataclass(frozen=True, slots=True)
class Check:
    """One level: whether everything looked at was equal, in words, and each problem in a line.

    ``unchecked`` names what was to be looked at and could not be.
    """

    name: str
    equal: bool
    words: str
    num_checked: int
    num_total: int
    problems: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked of a recording, and whether all of it was equal."""

    recording: str
    level: str
    equal: bool
    complete: bool
    checks: tuple[Check, ...]
