"""An experiment: many prompts, models and settings over the same frames, and the runs that it makes.

Owns the matrix: one run for each recording, model, manner of asking, sampling and repetition, with all
prompts that are asked in that manner in it, so that each frame is read once. Runs nothing, and reads no
file (``seeonce.runs.experiment_file``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from infer.grouping import Showing
from infer.prompt import Prompt
from infer.sampling import Sampling
from seeonce.runs.describe import DescribeOptions

_NAMED_PROMPTS = 3


@dataclass(frozen=True, slots=True)
class Manner:
    """How a prompt is asked: the schema that its answers follow, and what is shown around it."""

    schema: str | None = None
    showing: Showing = field(default_factory=Showing)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of an experiment, under its name."""

    name: str
    prompt: Prompt
    manner: Manner


@dataclass(frozen=True, slots=True)
class Experiment:
    """What the file says. ``samplings`` go by their names; ``manner`` is that of prompts with no own."""

    name: str
    recordings: tuple[str, ...]
    models: tuple[str | None, ...]
    questions: tuple[Question, ...]
    samplings: tuple[tuple[str, Sampling], ...]
    repetitions: int
    manner: Manner = field(default_factory=Manner)

    def cells(self) -> Iterator[DescribeOptions]:
        """Yield the options of every run; greedy ones once, as a repetition would say the same."""
        for recording in self.recordings:
            for model in self.models:
                for together in self._by_manner():
                    for label, sampling in self.samplings:
                        for number in range(self.repetitions if sampling.temperature > 0 else 1):
                            yield DescribeOptions(
                                tuple(question.prompt for question in together),
                                recording,
                                model,
                                sampling=replace(
                                    sampling, seed=sampling.seed + number, schema=together[0].manner.schema
                                ),
                                name=self._name(recording, model, together, label, number),
                                prompt_names=tuple(question.name for question in together),
                                showing=together[0].manner.showing,
                            )

    def _by_manner(self) -> list[tuple[Question, ...]]:
        """Return the prompts that are asked in one manner together, in the order of the file."""
        found: dict[Manner, list[Question]] = {}
        for question in self.questions:
            found.setdefault(question.manner, []).append(question)
        return [tuple(questions) for questions in found.values()]

    def _name(
        self, recording: str, model: str | None, together: tuple[Question, ...], label: str, number: int
    ) -> str:
        """Name a run by the experiment and by what tells it from the experiment's other runs."""
        parts = [self.name]
        if len(self.recordings) > 1:
            parts.append(recording)
        if len(self.models) > 1:
            parts.append(model or "default")
        if together[0].manner != self.manner:  # so that a prompt with a manner of its own renames no other
            parts.append(_names(together))
        if len(self.samplings) > 1:
            parts.append(label)
        if self.repetitions > 1:
            parts.append(str(number + 1))
        return " / ".join(parts)


def _names(questions: tuple[Question, ...]) -> str:
    named = ", ".join(question.name for question in questions[:_NAMED_PROMPTS])
    more = len(questions) - _NAMED_PROMPTS
    return f"{named} and {more} more" if more > 0 else named
