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


Expected = dict[str, dict[str, str]]
"""True answers by frame name and question id."""


def question_of(prompt: str) -> str | None:
    """Return the id of the question that `prompt` asks, paraphrases included."""
    texts = {**QUESTIONS, CHANGE: CHANGE_QUESTION}
    return next((name for name, known in texts.items() if prompt.strip() in known), None)


def read_truth(path: Path) -> Expected:
    """Read truth.csv.

    Raises:
        TruthError: when the file is missing or not the truth about drawn screens.
    """
    expected: Expected = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                expected.setdefault(row["frame"], {})[question_of(row["prompt"]) or ""] = row["text"]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise TruthError(
            f"cannot read the truth at {path}: {error}; write it with python -m seeonce.demo.screens"
        ) from error
    return expected


def true_answer(expected: Expected, frames: Sequence[str], prompt: str) -> str | None:
    """Return the true answer, or None when the truth says nothing about this question."""
    question, known = question_of(prompt), [expected[frame] for frame in frames if frame in expected]
    if question is None or len(known) != len(frames):
        return None
    if question == CHANGE:
        return change_text(*(answers["apps"] for answers in known)) if len(known) == 2 else None
    return known[0].get(question) if len(known) == 1 else None


def is_true(result: Result, expected: Expected) -> bool | None:
    """Return whether the answer is true, or None when the truth does not say."""
    answer = true_answer(expected, result.frames, result.prompt)
    return None if answer is None else result.text.strip() == answer


def score(results: Iterable[Result], expected: Expected) -> dict[str, list[bool]]:
    """Return whether each answer is true, by question in the order of the questions."""
    verdicts: dict[str, list[bool]] = {name: [] for name in (*QUESTIONS, CHANGE)}
    for result in results:
        verdict, question = is_true(result, expected), question_of(result.prompt)
        if verdict is not None and question is not None:
            verdicts[question].append(verdict)
    return {name: found for name, found in verdicts.items() if found}
