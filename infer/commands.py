"""``seeonce describe`` and ``verify-cache``: options, progress and the printed form.

Owns no work: that is ``infer.describe`` and ``infer.verify``. What only pass one knows (which recording
is the newest, what live encoding gives) comes in as ``Wiring``, set by the front door.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import EXIT_INTERRUPTED, EXIT_PARTLY
from cache.home import Home
from cache.progress import progress_bar
from infer.describe import DescribeOptions, DescribeResult, describe
from infer.limits import BatchLimits
from infer.live_side import LiveSideOf
from infer.prompt import collect_prompts
from infer.report import Check, Level, Report
from infer.run import Result
from infer.sampling import Sampling
from infer.selection import NewestId
from infer.table import answer_table
from infer.verify import VerifyOptions, verify

if TYPE_CHECKING:
    from tqdm import tqdm

_PROBLEMS_SHOWN = 12
_PROVEN = {
    Level.bytes: "every stored byte is as it was written; live encoding was not asked",
    Level.embeddings: "the features checked are those of live encoding; answers were not asked",
    Level.outputs: "the features and answers checked are those of live encoding",
}


@dataclass(frozen=True, slots=True)
class Wiring:
    """What pass two needs of others, as functions: two of pass one, and what is known to be true.

    ``judge`` is given a recording's id and its answers, and says in lines how many of them are true.
    """

    newest_recording_id: NewestId
    live_side_of: LiveSideOf
    judge: Callable[[str, Sequence[Result]], list[str]]


Recording = Annotated[str, typer.Argument(help="demo, latest, an id, the start of one, or the path.")]
Model = Annotated[str | None, typer.Option(help="A folder or hub id; SEEONCE_MODEL, else Qwen3-VL-4B 4-bit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def describe_command(
    context: typer.Context,
    recording: Recording = "latest",
    model: Model = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A question for every frame; repeatable.")] = None,
    prompt_file: Annotated[list[Path] | None, typer.Option(help="A file with one; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results here too, as JSON lines.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Sampled answers repeat under the same seed.")] = 0,
    max_num_seqs: Annotated[int, typer.Option(help="Answers decoded at once.")] = 8,
    prefill_batch_size: Annotated[int, typer.Option(help="Prompts prefilled together.")] = 4,
    prefill_step_size: Annotated[int, typer.Option(help="Tokens of a prompt prefilled at a time.")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Ask questions about every encoded frame, from the store; no image is opened.

    Example: seeonce describe latest --prompt "Which applications are open?" --output apps.jsonl
    """
    options = DescribeOptions(
        prompts=collect_prompts(prompt or [], prompt_file or []),
        recording=recording,
        model=model,
        output=output,
        sampling=Sampling(temperature, top_p, seed, max_tokens),
        limits=BatchLimits(max_num_seqs, prefill_batch_size, prefill_step_size),
    )
    wiring: Wiring = context.obj
    with Terminal() as terminal:
        done = describe(Home.locate(), options, wiring.newest_recording_id, terminal)
    if as_json:
        typer.echo(json.dumps(asdict(done.info) | {"path": str(done.path)}))
    else:
        typer.echo(answer_table(terminal.results, shutil.get_terminal_size((110, 24)).columns))
        typer.echo("\n".join([_summary(done), *wiring.judge(done.info.recording, terminal.results)]))
    raise typer.Exit(_exit_code(done))


def verify_command(
    context: typer.Context,
    recording: Recording = "latest",
    level: Annotated[Level, typer.Option(help="How much to prove; each level includes those before.")] = (
        Level.outputs
    ),
    sample: Annotated[str, typer.Option(help="How many frames to compare with live encoding, or all.")] = "8",
    model: Model = None,
    seed: Annotated[int, typer.Option(help="Which frames a sample takes.")] = 0,
    as_json: AsJson = False,
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


class Terminal:
    """Shows pass two on the terminal: lines and one bar on standard error, rows kept for a table."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        typer.echo(line, err=True)

    def begin(self, num_results: int, what: str = "describe", unit: str = "answer") -> None:
        """Start a bar over so many results."""
        self.__exit__()
        self._bar = progress_bar(num_results, unit, what)

    def advance(self, num_done: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(num_done)

    def result(self, result: Result) -> None:
        """Keep an answer for the table, and move the bar."""
        self.results.append(result)
        self.advance()


def _summary(done: DescribeResult) -> str:
    totals = done.info.totals
    state = "interrupted" if done.interrupted else "done"
    return (
        f"{done.info.recording}: {totals.num_results} answers in {totals.seconds:.1f} s, "
        f"{totals.num_parsed} parsed, {totals.num_errors} errors, {totals.prompt_tokens:,} prompt and "
        f"{totals.completion_tokens:,} answer tokens, no image opened; {state}. Results: "
        f"{done.path / 'results.jsonl'}"
    )


def _exit_code(done: DescribeResult) -> int:
    totals = done.info.totals
    if done.interrupted:
        return EXIT_INTERRUPTED
    if totals.num_errors:
        return 1 if totals.num_errors == totals.num_results else EXIT_PARTLY
    return 0


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
