"""How a comparison is judged: by how much faster, and whether the answers are the same. No measuring."""

from dataclasses import dataclass

SPEED_UPS = ((3.0, "strong"), (2.0, "yes"), (1.5, "marginal"))
"""How many times as fast, and what that is called; below it is "no gain"."""

LEAST_MATCH = 0.8
"""Which share of the answers must match: similarity above 0.8, as ``seeonce compare`` counts it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Ours against another way of answering the same questions about the same frames.

    ``num_true`` counts the answers, ours and theirs, that are known to be true, where the truth is known;
    ``num_wrong`` those of ours that the same weights do not give live, near-ties aside, where that was asked.
    """

    work: str
    other: str
    times_as_fast: float
    num_answers: int
    num_matching: int
    num_about_another_frame: int
    num_failed: int
    num_true: tuple[int, int] | None = None
    num_wrong: int | None = None

    @property
    def is_same(self) -> bool:
        """Whether both say the same: enough match, none is about another frame, failed or is wrong."""
        return (
            self.num_matching >= LEAST_MATCH * self.num_answers
            and not self.num_about_another_frame
            and not self.num_failed
            and not self.num_wrong
        )

    @property
    def word(self) -> str:
        """The verdict in a word; "answers differ" whatever the speed."""
        if not self.is_same:
            return "answers differ"
        return next((word for least, word in SPEED_UPS if self.times_as_fast >= least), "no gain")

    def sentence(self) -> str:
        """Return the verdict with what it rests on."""
        parts = [
            f"{self.times_as_fast:.2f} times as fast as {self.other} for {self.work}",
            f"{self.num_matching} of {self.num_answers} answers match",
            f"{self.num_about_another_frame} are about another frame, {self.num_failed} failed",
        ]
        if self.num_wrong is not None:
            parts.append(f"{self.num_wrong} of ours are wrong")
        if self.num_true is not None:
            ours, theirs = self.num_true
            parts.append(f"true are {ours} of ours and {theirs} of theirs")
        return f"{self.word}: {'; '.join(parts)}."

    def as_json(self) -> dict[str, object]:
        """Return the figures and the word by name."""
        return {
            "verdict": self.word,
            "work": self.work,
            "other": self.other,
            "times_as_fast": self.times_as_fast,
            "answers": self.num_answers,
            "matching": self.num_matching,
            "about_another_frame": self.num_about_another_frame,
            "failed": self.num_failed,
            "wrong": self.num_wrong,
            "true": None if self.num_true is None else list(self.num_true),
        }


def thresholds() -> str:
    """Say by what a verdict is reached."""
    speeds = ", ".join(f"{least:g} times as fast: {word}" for least, word in SPEED_UPS)
    return (
        f"At least {speeds}; else no gain. If fewer than {LEAST_MATCH:.0%} of the answers match, if one is "
        "about another frame, failed or is wrong under the same weights: answers differ."
    )
