"""What a workload found, as tables: for a person in Markdown, for machines in JSON."""

from dataclasses import dataclass

from seeonce.bench.verdict import Outcome

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """One workload's figures. ``remarks`` say what was left out, and what the figures do not show."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remarks: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Found:
    """What a workload came to; ``outcome`` where it compares us with something that a verdict is about."""

    tables: tuple[Table, ...]
    outcome: Outcome | None = None


def _line(cells: "tuple[str, ...] | list[str]") -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else " ".join(cell.split()).replace("|", "\\|")
