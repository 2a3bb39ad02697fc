"""seeonce: see each frame of a screen recording once, ask about it as often as you like.

The front door: composes pass one (``precompute``), the store (``cache``) and pass two (``infer``) for
the command line and for Python, and is the only place that knows both passes.

    from seeonce import DescribeOptions, EncodeOptions, Prompt, describe, encode
    encode(EncodeOptions("demo"))
    run = describe(DescribeOptions((Prompt("Which applications are open?"),), "demo"))
"""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import typer

from bench.commands import bench_command
from cache.commands import Wiring as StoreWiring
from cache.commands import app as store_app
from cache.errors import EXIT_INTERRUPTED, SeeonceError
from cache.home import Home
from cache.manifest import FrameEntry, Manifest
from cache.repairing import Missing
from checkpoint.backend import put_openblas_in_front
from checkpoint.config import CheckpointConfig
from checkpoint.folder import DEMO, CheckpointFolder
from infer.canary import sound_limits
from infer.commands import Wiring as DescribeWiring
from infer.commands import describe_command
from infer.describe import DescribeOptions, DescribeResult
from infer.describe import describe as pass_two
from infer.experiment_command import Wiring as ExperimentWiring
from infer.experiment_command import run_command
from infer.grouping import ImagePosition, Showing
from infer.limits import BatchLimits
from infer.prompt import Prompt, collect_prompts
from infer.sampling import Sampling
from infer.terminal import Terminal as AnswerTerminal
from precompute.commands import Terminal, encode_command
from precompute.encode import EncodeResult
from precompute.pass_one import EncodeOptions
from precompute.pass_one import encode as pass_one
from results.answer_cache import AnswerCache
from results.commands import Wiring as ResultsWiring
from results.commands import compare_command, report_command, runs_command, score_command
from results.compare import Place
from results.export_command import export_command
from results.notebook import AnswerTable, read_table
from results.removal import remove_runs
from results.run import Result
from results.score import Expected
from results.sheet import Column, Row
from results.truth import expected_answer, file_name
from sources.commands import recordings_command
from sources.listing import newest_listed_id
from verify.commands import verify_command
from verify.controls import CommandEnded
from verify.live_side import LiveSide
from verify.report import Level, Report
from verify.verifier import VerifyOptions
from verify.verifier import Wiring as VerifyWiring
from verify.verifier import verify as check_store

__all__ = [
    "AnswerTable",
    "DescribeOptions",
    "DescribeResult",
    "EncodeOptions",
    "EncodeResult",
    "Home",
    "ImagePosition",
    "Level",
    "Prompt",
    "Report",
    "Sampling",
    "SeeonceError",
    "Showing",
    "VerifyOptions",
    "ask",
    "describe",
    "encode",
    "verify",
]


put_openblas_in_front()  # whatever is called first, MLX is imported after this


def encode(options: EncodeOptions, home: Home | None = None) -> EncodeResult:
    """Encode a recording into the store of ``home``, by default the user's. Raises ``SeeonceError``."""
    with Terminal() as terminal:
        return pass_one(home or Home.locate(), options, terminal)


def describe(options: DescribeOptions, home: Home | None = None) -> DescribeResult:
    """Ask every prompt of every encoded frame; results lie in the run's folder. Raises ``SeeonceError``."""
    home = home or Home.locate()
    with AnswerTerminal() as terminal, AnswerCache(home) as known:
        limits = _sound_limits(home, options.limits, terminal.say)
        return pass_two(home, replace(options, limits=limits), _newest_id, terminal, known)


def ask(recording: str, *prompts: str, model: str | None = None, home: Home | None = None) -> AnswerTable:
    """Ask questions about every encoded frame, and return the answers as a table.

    Raises ``SeeonceError``; after Ctrl-C the table has the answers so far.
    """
    options = DescribeOptions(collect_prompts(list(prompts), []), recording, model)
    return read_table(describe(options, home).path)


def verify(options: VerifyOptions, home: Home | None = None) -> Report:
    """Hold the store against live encoding. Raises ``SeeonceError`` when that cannot be done."""
    with AnswerTerminal() as terminal:
        return check_store(home or Home.locate(), options, _VERIFY, terminal)


def _newest_id() -> str | None:
    return newest_listed_id(os.environ)


def _live_side(folder: CheckpointFolder, config: CheckpointConfig, manifest: Manifest) -> LiveSide:
    from precompute.live import LiveFrames

    return LiveFrames(folder, config, manifest)


def _verify_cache(arguments: Sequence[str], home: Home) -> CommandEnded:
    """Run ``verify-cache`` over another home, in this process, as it is run from the command line."""
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get("SEEONCE_HOME")
    os.environ["SEEONCE_HOME"] = str(home.path)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run(verify_app, list(arguments), error_code=2)
    finally:
        os.environ.pop("SEEONCE_HOME")
        os.environ.update({} if before is None else {"SEEONCE_HOME": before})
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return CommandEnded(code, out.getvalue(), err.getvalue())


def _encode_again(missing: Missing) -> Iterator[tuple[FrameEntry, str | None]]:
    from precompute.again import encode_again  # imports mlx-vlm, which takes seconds

    yield from encode_again(missing)


def _judge(recording_id: str, results: Sequence[Result]) -> list[str]:
    """Say how many answers about the demo recording are true; of others the truth is not known."""
    if recording_id != DEMO:
        return []
    from demo import score as demo

    asked = [demo.Result((Path(result.source).name,), result.prompt, result.text) for result in results]
    scores = demo.score(asked, demo.read_truth(Path(demo.__file__).with_name("recording") / "truth.json"))
    return [f"{score.num_true} of {score.num_asked} answers ({score.question}) are true." for score in scores]


def _sound_limits(home: Home, limits: BatchLimits, say: Callable[[str], None]) -> BatchLimits:
    return sound_limits(home, limits, _trial, say)


def _trial(limits: BatchLimits) -> str | None:
    """Let the demo checkpoint answer about drawn screens, batched and live."""
    import demo
    from demo.questions import QUESTIONS
    from verify.canary_trial import TrialCase, run_trial

    folder = Path(demo.__file__).parent
    pictures = sorted((folder / "recording").glob("*.png"))[::8]
    questions = tuple(QUESTIONS[name][0] for name in ("apps", "activity", "windows"))
    return run_trial(TrialCase(folder / "checkpoint", tuple(pictures), questions), limits)


def _known_truth(column: Column, rows: tuple[Row, ...]) -> dict[Place, Expected]:
    """Return the true answers about the demo's frames; of other recordings the truth is not known."""
    from demo import score as demo

    truth = demo.read_truth(Path(demo.__file__).with_name("recording") / "truth.json")
    found: dict[Place, Expected] = {}
    for row in rows if any(row.recording == DEMO for row in rows) else ():
        answer = truth.answer((file_name(row.source),), column.prompt) if row.recording == DEMO else None
        if answer is not None:
            found[row.recording, row.frame] = expected_answer(answer, demo.question_of(column.prompt) or "")
    return found


def _encode_for(home: Home, recording: str, model: str | None) -> bool:
    """Encode a recording that an experiment asks about; tell whether that was interrupted."""
    return encode(EncodeOptions(recording, model), home).interrupted


def _remove_runs(home: Home, recording_id: str) -> int:
    """Remove the runs of a recording that is forgotten, and every answer that was kept of it."""
    with AnswerCache(home) as known:
        known.remove_recording(recording_id)
    return remove_runs(home, recording_id)


_DESCRIBE = DescribeWiring(
    newest_recording_id=_newest_id, judge=_judge, sound_limits=_sound_limits, known_answers=AnswerCache
)
_EXPERIMENT = ExperimentWiring(
    encode=_encode_for,
    newest_recording_id=_newest_id,
    sound_limits=_sound_limits,
    known_answers=AnswerCache,
)
_VERIFY = VerifyWiring(newest_recording_id=_newest_id, live_side_of=_live_side, command=_verify_cache)
_STORE = StoreWiring(remove_runs=_remove_runs, encode_again=_encode_again)
_RESULTS = ResultsWiring(known_truth=_known_truth)
_USAGE_CODE = 2
_DEBUG = "Any command takes --debug, which shows the traceback of an error."

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"obj": _DESCRIBE},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_DEBUG,
)
app.command("encode")(encode_command)
app.command("describe")(describe_command)
app.command("bench")(bench_command)
app.command("run", context_settings={"obj": _EXPERIMENT})(run_command)
app.command("recordings")(recordings_command)
app.command("export")(export_command)
app.command("runs")(runs_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("score", context_settings={"obj": _RESULTS})(score_command)
app.add_typer(store_app, name="store", context_settings={"obj": _STORE})


@app.callback()
def _seeonce() -> None:
    """See each frame of a screen recording once, ask about it as often as you like.

    Example: seeonce encode demo, then seeonce describe demo, then verify-cache demo
    """


verify_app = typer.Typer(
    context_settings={"obj": _VERIFY},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_DEBUG,
)
verify_app.command()(verify_command)


def main() -> None:
    """Run the command ``seeonce``: exit 0 done, 1 error, 3 partly done, 130 interrupted."""
    sys.exit(run(app, sys.argv[1:], error_code=1))


def verify_cache_main() -> None:
    """Run the command ``verify-cache``: exit 0 equal, 1 different, 2 could not check."""
    sys.exit(run(verify_app, sys.argv[1:], error_code=2))


def run(command: typer.Typer, arguments: list[str], *, error_code: int) -> int:
    """Run a command line and return its exit code; an error becomes one line on standard error."""
    debug = "--debug" in arguments
    _quiet(debug)
    try:
        command([argument for argument in arguments if argument != "--debug"])
    except SystemExit as ended:
        return _exit_code(ended, error_code)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SeeonceError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error_code
    except Exception:  # a bug of ours: its traceback is wanted, and verify-cache must not say "differs"
        traceback.print_exc()
        return error_code
    return 0


def _exit_code(ended: SystemExit, error_code: int) -> int:
    """Return the code of a finished command; typer itself ends wrong usage with 2 and Ctrl-C with 1."""
    if isinstance(ended.__context__, typer.Abort):
        return EXIT_INTERRUPTED
    if ended.code == _USAGE_CODE:
        return error_code
    return ended.code if isinstance(ended.code, int) else 0


def _quiet(debug: bool) -> None:
    """Keep other libraries' advice off the terminal, unless it is asked for."""
    level = logging.DEBUG if debug else logging.ERROR
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name in ("transformers", "huggingface_hub", "mlx_vlm", "PIL", "libav"):
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "debug" if debug else "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    main()
