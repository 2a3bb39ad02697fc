"""Which answers are true: results against truth.csv. Pure functions, no model code.

An answer is true when it is the expected text exactly, surrounding white space apart.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS, change_text

CHANGE = "change"


class TruthError(Exception):
    """truth.csv is missing or not readable as such."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a model answered: one frame's file name, or two for the two-frame question."""

    frames: tuple[str, ...]
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Expected:
    """True answers by frame name and question id."""

    by_frame: dict[str, dict[str, str]]

    def answer(self, frames: Sequence[str], prompt: str) -> str | None:
        """Return the true answer, or None when the truth says nothing about this question."""
        question = question_of(prompt)
        if question is None:
            return None
        if question == CHANGE:
            apps = [self.by_frame[frame]["apps"] for frame in frames if frame in self.by_frame]
            return change_text(*apps) if len(apps) == len(frames) == 2 else None
        return self.by_frame.get(frames[0], {}).get(question) if len(frames) == 1 else None


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers of one question are exactly true."""

    question: str
    num_true: int
    num_asked: int

    @property
    def rate(self) -> float:
        """The share of true answers, 0.0 to 1.0."""
        return self.num_true / self.num_asked if self.num_asked else 0.0


def question_of(prompt: str) -> str | None:
    """Return the id of the question that `prompt` asks, paraphrases included."""
    texts = {**QUESTIONS, CHANGE: CHANGE_QUESTION}
    return next((name for name, known in texts.items() if prompt.strip() in known), None)


def read_truth(path: Path) -> Expected:
    """Read truth.csv.

    Raises:
        TruthError: when the file is missing or not the truth about drawn screens.
    """
    by_frame: dict[str, dict[str, str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                by_frame.setdefault(row["frame"], {})[question_of(row["prompt"]) or ""] = row["text"]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise TruthError(
            f"cannot read the truth at {path}: {error}; write it with python -m seeonce.demo.screens"
        ) from error
    return Expected(by_frame)


def is_true(result: Result, expected: Expected) -> bool | None:
    """Return whether the answer is true, or None when the truth does not say."""
    answer = expected.answer(result.frames, result.prompt)
    return None if answer is None else result.text.strip() == answer


def score(results: Iterable[Result], expected: Expected) -> list[Score]:
    """Return one score for each question that was asked, in the order of the questions."""
    verdicts: dict[str, list[bool]] = {}
    for result in results:
        verdict, question = is_true(result, expected), question_of(result.prompt)
        if verdict is not None and question is not None:
            verdicts.setdefault(question, []).append(verdict)
    return [
        Score(name, sum(verdicts[name]), len(verdicts[name]))
        for name in (*QUESTIONS, CHANGE)
        if name in verdicts
    ]
