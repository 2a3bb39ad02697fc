"""``seeonce export``: options and the printed form."""

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import EXIT_PARTLY, InputError
from cache.base.files import write_private
from cache.base.home import Home
from cache.base.text import STANDARD_OUTPUT, counted, megabytes, printable
from seeonce.commands.arguments import AsJson, warn
from seeonce.runs.export.escribano import ExportPlan, RowChange
from seeonce.runs.export.escribano_write import COPIES_KEPT, export, target_of
from seeonce.runs.export.files import as_csv, as_parquet
from seeonce.runs.find import select_run
from seeonce.runs.run import Result, Run

_LINES_SHOWN = 20
_WIDTH = 60


class Format(StrEnum):
    """Where answers go."""

    escribano = "escribano"
    csv = "csv"
    parquet = "parquet"


def export_command(
    run: Annotated[
        str, typer.Argument(help="latest, the id of a run, the start of one, or its name.")
    ] = "latest",
    to: Annotated[Format, typer.Option(help="Escribano's database, or a file.")] = Format.csv,
    output: Annotated[
        Path | None,
        typer.Option(help="The file for csv or parquet; - prints csv; else beside the run's results."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace descriptions that are there already.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the answers of a run to where they are wanted.

    Example: seeonce export latest --to escribano --dry-run
    """
    home = Home.locate()
    chosen = select_run(home, run, warn)
    folder = home.runs / chosen.info.id
    answers = _of_one_prompt(chosen) if to is Format.escribano else chosen.answers
    if to is not Format.escribano:
        if dry_run or overwrite:
            raise InputError("--dry-run and --overwrite are for --to escribano; a file is written as it is")
        if output == STANDARD_OUTPUT:
            _print_table(to, answers, as_json=as_json)
            return
        path = output or folder / f"results.{to.value}"
        write_private(path, as_csv(answers) if to is Format.csv else as_parquet(answers))
        summary = {"output": str(path), "num_answers": len(answers)}
        typer.echo(json.dumps(summary) if as_json else f"{counted(len(answers), 'answer')} in {path}")
        return
    if output is not None:
        raise InputError("--output is for csv and parquet; --to escribano writes to the recording's database")
    if not answers:
        raise InputError(f"{folder.name} has no answers: see its results.jsonl")
    database, row_id = target_of(home, answers[0].recording, "use --to csv or --to parquet")
    done = export(database, row_id, answers, overwrite=overwrite, dry_run=dry_run, model=chosen.info.model)
    shown = _as_json if as_json else _in_words
    typer.echo(shown(done, database, dry_run=dry_run))
    if done.problems:
        raise typer.Exit(EXIT_PARTLY)


def _print_table(to: Format, answers: Sequence[Result], *, as_json: bool) -> None:
    if to is not Format.csv:
        raise InputError(f"--output - is for csv: {to.value} is no text, name a file")
    if as_json:
        raise InputError("--json and --output - both write to standard output: leave one out")
    typer.echo(as_csv(answers), nl=False)


def _of_one_prompt(run: Run) -> list[Result]:
    """Return the answers to the only prompt, or to the only one that got descriptions."""
    asked = run.answered_prompts
    if len(asked) > 1:
        described = {answer.prompt for answer in run.answers if answer.description is not None}
        asked = [text for text in asked if text in described] if len(described) == 1 else asked
    if len(asked) > 1:
        order = list(dict.fromkeys([*run.info.prompts, *asked]))
        named = ", ".join(f"{run.info.id}:{order.index(text) + 1} {text[:40]!r}" for text in asked)
        raise InputError(
            f"an observation holds one answer and the run has {len(asked)} prompts: name {named}"
        )
    return [answer for answer in run.answers if answer.prompt in asked]


def _in_words(plan: ExportPlan, database: Path, *, dry_run: bool) -> str:
    lines = [_change(change) for change in plan.changes[:_LINES_SHOWN]] if dry_run else []
    lines += _more(len(plan.changes)) if dry_run else []
    lines += [f"not written: {problem}" for problem in plan.problems[:_LINES_SHOWN]] + _more(
        len(plan.problems)
    )
    if plan.missing_columns:
        lines.append(f"this database has no column {', '.join(plan.missing_columns)}: left out")
    verb = "would be written" if dry_run else "written"
    made = f" ({plan.num_inserted} of them new)" if plan.num_inserted else ""
    kept = f", {plan.num_kept} keep another description (--overwrite replaces them)" if plan.num_kept else ""
    lines.append(
        f"{printable(database)}: {counted(len(plan.changes), 'observation')} {verb}{made}, "
        f"{plan.num_same} say so already{kept}, {len(plan.problems)} not reached."
    )
    if plan.odd_activities:
        lines.append(
            f"Not among Escribano's activities, so each makes segments of its own: "
            f"{', '.join(printable(word)[:_WIDTH] for word in plan.odd_activities[:5])}"
            f"{', …' * (len(plan.odd_activities) > 5)}; describe --preset escribano keeps to them."
        )
    lines += plan.later_steps
    if plan.backup is not None:
        lines.append(f"As it was before: {printable(plan.backup)}")
        lines.append(_copies(plan, database))
    return "\n".join(lines)


def _copies(plan: ExportPlan, database: Path) -> str:
    """Say what the copies take, and how they are removed."""
    num_bytes = 0
    with suppress(OSError):
        num_bytes = sum(path.stat().st_size for path in plan.copies)
    place = shlex.quote(printable(database))
    return (
        f"{counted(len(plan.copies), 'copy')} beside it, {megabytes(num_bytes)}; the newest {COPIES_KEPT} "
        f"are kept. Remove them with: rm {place}.before-seeonce-[0-9]*"
    )


def _more(number: int) -> list[str]:
    return [f"… and {number - _LINES_SHOWN} more"] if number > _LINES_SHOWN else []


def _change(change: RowChange) -> str:
    columns = "; ".join(f"{name} {_shown(old)} -> {_shown(new)}" for name, old, new in change.columns)
    new = "new " if change.is_new else ""
    return f"{new}observation {printable(os.fsdecode(change.id))} (frame {change.frame}): {columns}"


def _shown(value: object) -> str:
    text = "NULL" if value is None else printable(repr(value))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _as_json(plan: ExportPlan, database: Path, *, dry_run: bool) -> str:
    changes = [
        {
            "observation": os.fsdecode(change.id),
            "frame": change.frame,
            "columns": {name: new for name, _, new in change.columns},
            "new": change.is_new,
        }
        for change in plan.changes
    ]
    return json.dumps(
        {
            "database": str(database),
            "dry_run": dry_run,
            "backup": None if plan.backup is None else str(plan.backup),
            "changes": changes,
            "num_same": plan.num_same,
            "num_kept": plan.num_kept,
            "missing_columns": plan.missing_columns,
            "problems": plan.problems,
            "odd_activities": plan.odd_activities,
            "later_steps": plan.later_steps,
            "copies": [str(path) for path in plan.copies],
        }
    )
