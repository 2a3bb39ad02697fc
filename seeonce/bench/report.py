"""What the benchmark leaves: for a person in Markdown, for machines in JSON."""

import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.errors import InputError
from checkpoint.backend import installed_version, provenance
from seeonce.bench.table import Found, Table
from seeonce.bench.verdict import Outcome, thresholds

FORMAT = 1
_DISTRIBUTIONS = ("seeonce", "mlx", "mlx-vlm", "transformers", "zarr")


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
    found: tuple[Found, ...] = ()
    num_left: int = 0

    @property
    def tables(self) -> list[Table]:
        """All tables, in the order in which they were measured."""
        return [table for found in self.found for table in found.tables]

    @property
    def outcomes(self) -> list[Outcome]:
        """What a verdict is about."""
        return [found.outcome for found in self.found if found.outcome is not None]

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


def memory_bytes() -> int:
    """Return how much memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)
