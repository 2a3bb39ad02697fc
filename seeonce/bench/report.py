"""What the benchmark leaves: for a person in Markdown, for machines in JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cache.base.errors import InputError
from checkpoint.backend import installed_version, memory_bytes, provenance

FORMAT = 1
_DISTRIBUTIONS = ("seeonce", "mlx", "mlx-vlm", "transformers", "zarr")

SPEED_UPS = ((3.0, "strong"), (2.0, "yes"), (1.5, "marginal"))
"""How many times as fast, and what that is called; below it is "no gain"."""

LEAST_MATCH = 0.8
"""Which share of the answers must match: similarity above 0.8, as ``seeonce compare`` counts it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Ours against another way to answer the same questions about the same frames.

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


Cell = str | int | float | None


Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of a workload. ``remarks`` say what was left out, and what the figures do not show.

    ``outcome`` is there where the table compares us with something that a verdict is about.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    outcome: Outcome | None = None

    def as_markdown(self) -> str:
        """Return a heading, the table and its remarks."""
        lines = [f"## {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        lines += [_line([_text(cell) for cell in row]) for row in self.rows]
        for remark in self.remarks:
            lines += ["", remark]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, object]:
        """Return an object whose rows are objects by column."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"name": self.name, "title": self.title, "rows": rows, "remarks": list(self.remarks)}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else " ".join(cell.split()).replace("|", "\\|")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where was measured. ``memory_bytes`` is what the machine has."""

    system: str
    num_cores: int
    memory_bytes: int
    device: str
    python: str
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls) -> "Machine":
        """Ask this machine. Imports MLX."""
        computes = provenance()
        return cls(
            system=f"{platform.system()} {platform.machine()}",
            num_cores=os.cpu_count() or 0,
            memory_bytes=memory_bytes(),
            device=f"{computes.device}, {computes.chip}",
            python=platform.python_version(),
            versions=tuple((name, installed_version(name)) for name in _DISTRIBUTIONS),
        )

    def as_markdown(self) -> str:
        """Return a list."""
        return "\n".join(
            (
                f"- machine: {self.system}, {self.num_cores} cores, {self.memory_bytes / 1e9:.0f} GB",
                f"- device: {self.device}",
                f"- versions: {', '.join(' '.join(each) for each in self.versions)}, Python {self.python}",
            )
        )

    def as_json(self) -> dict[str, object]:
        """Return an object by name."""
        return {
            "system": self.system,
            "cores": self.num_cores,
            "memory_bytes": self.memory_bytes,
            "device": self.device,
            "python": self.python,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, of what, where and when; ``num_left`` workloads were not reached."""

    checkpoint: str
    machine: Machine
    started_at: datetime
    took_s: float = 0.0
    tables: tuple[Table, ...] = ()
    num_left: int = 0

    @property
    def outcomes(self) -> list[Outcome]:
        """What a verdict is about."""
        return [table.outcome for table in self.tables if table.outcome is not None]

    @property
    def verdict(self) -> str:
        """A line for each comparison."""
        lines = [outcome.sentence() for outcome in self.outcomes]
        return "\n\n".join(lines) or "No verdict: no workload was measured that compares answers."

    def as_markdown(self) -> str:
        """Return the report for a person."""
        left = f"; {self.num_left} workloads were not measured" if self.num_left else ""
        parts = [
            f"# Benchmark of {self.checkpoint}",
            f"{self.started_at:%Y-%m-%d %H:%M} UTC, {self.took_s:.0f} s{left}",
            self.machine.as_markdown(),
            "## Verdict",
            self.verdict,
            thresholds(),
            *(table.as_markdown().rstrip() for table in self.tables),
        ]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, object]:
        """Return the report for machines."""
        return {
            "format": FORMAT,
            "checkpoint": self.checkpoint,
            "machine": self.machine.as_json(),
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "took_s": round(self.took_s, 1),
            "outcomes": [outcome.as_json() for outcome in self.outcomes],
            "tables": [table.as_json() for table in self.tables],
            "not_measured": self.num_left,
        }

    def write(self, path: Path) -> None:
        """Write Markdown, or JSON into a file whose name ends so.

        Raises:
            InputError: the disk refuses.
        """
        is_json = path.suffix == ".json"
        text = json.dumps(self.as_json(), indent=1) + "\n" if is_json else self.as_markdown()
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output {path} cannot be written ({error}): name another file.") from error
