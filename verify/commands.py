"""``verify-cache``: options, progress and the printed form.

Owns no work: that is ``verify.verifier``. What only pass one knows (which recording is the newest, what
live encoding gives) comes in as ``Wiring``, set by the front door.
"""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cache.home import Home
from infer.selection import NewestId
from infer.terminal import Terminal
from verify.live_side import LiveSideOf
from verify.report import Check, Level, Report
from verify.verifier import VerifyOptions, verify

_PROBLEMS_SHOWN = 12
_PROVEN = {
    Level.bytes: "every stored byte is as it was written; live encoding was not asked",
    Level.embeddings: "the features checked are those of live encoding; answers were not asked",
    Level.outputs: "the features and answers checked are those of live encoding",
}


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the verifier needs of pass one, as functions."""

    newest_recording_id: NewestId
    live_side_of: LiveSideOf


def verify_command(
    context: typer.Context,
    recording: Annotated[
        str, typer.Argument(help="demo, latest, an id, the start of one, or the path.")
    ] = "latest",
    level: Annotated[Level, typer.Option(help="How much to prove; each level includes those before.")] = (
        Level.outputs
    ),
    sample: Annotated[str, typer.Option(help="How many frames to compare with live encoding, or all.")] = "8",
    model: Annotated[
        str | None, typer.Option(help="A folder or hub id; SEEONCE_MODEL, else Qwen3-VL-4B 4-bit.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which frames a sample takes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Prove that the store gives what live encoding gives. Exit 0 equal, 1 different, 2 could not check.

    Example: verify-cache demo --level outputs --sample all
    """
    wiring: Wiring = context.obj
    options = VerifyOptions(recording, level, sample, model, seed)
    with Terminal() as terminal:
        report = verify(Home.locate(), options, wiring.newest_recording_id, wiring.live_side_of, terminal)
    typer.echo(json.dumps(asdict(report)) if as_json else _verdict(report))
    raise typer.Exit(0 if report.equal and report.complete else 1 if not report.equal else 2)


def _word(check: Check) -> str:
    if not check.equal:
        return "DIFFERS"
    return "equal" if check.num_checked else "unknown"


def _verdict(report: Report) -> str:
    lines = [f"{check.name:<11} {_word(check)}: {check.words}" for check in report.checks]
    lines += [f"  {problem}" for check in report.checks for problem in check.problems[:_PROBLEMS_SHOWN]]
    lines += [f"  not checked: {reason}" for check in report.checks for reason in check.unchecked]
    verdict = _PROVEN[Level(report.level)] if report.equal else "NOT equal; see above"
    if report.equal and not report.complete:
        verdict = "nothing found to differ, but not all could be checked; see above"
    return "\n".join([*lines, f"{report.recording}: {verdict}."])
