"""Both command lines: which commands there are, and how an error ends one."""

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from cache.base.errors import EXIT_INTERRUPTED, SeeonceError
from checkpoint.backend import installed_version
from checkpoint.blas import put_openblas_in_front
from seeonce.commands.bench import bench_command
from seeonce.commands.bridge import bridge_command
from seeonce.commands.compare import compare_command
from seeonce.commands.describe import describe_command
from seeonce.commands.doctor import doctor_command
from seeonce.commands.encode import encode_command
from seeonce.commands.export import export_command
from seeonce.commands.help import Command
from seeonce.commands.recordings import recordings_command
from seeonce.commands.report import report_command
from seeonce.commands.run import run_command
from seeonce.commands.run_batch import run_batch_command
from seeonce.commands.runs import runs_command
from seeonce.commands.score import score_command
from seeonce.commands.serve import serve_command
from seeonce.commands.store import app as store_app
from seeonce.commands.verify import verify_command

put_openblas_in_front()  # whatever is called first, MLX is imported after this

_USAGE_CODE = 2
_DEBUG = "Any command takes --debug, which shows the traceback of an error."

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_DEBUG,
)
app.command("encode")(encode_command)
app.command("describe")(describe_command)
app.command("verify")(verify_command)
app.command("run")(run_command)
app.command("recordings")(recordings_command)
app.command("export")(export_command)
app.command("runs")(runs_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("score")(score_command)
app.command("serve")(serve_command)
app.command("run-batch")(run_batch_command)
app.command("bench")(bench_command)
app.command("bridge")(bridge_command)
app.command("doctor")(doctor_command)
app.add_typer(store_app, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seeonce {installed_version('seeonce')}")
        raise typer.Exit


@app.callback()
def _seeonce(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """See each frame of a screen recording once, ask about it as often as you like.

    Example: seeonce encode demo, then seeonce describe demo, then seeonce verify demo
    """


verify_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_DEBUG,
)
verify_app.command()(verify_command)

for _command in (*app.registered_commands, *store_app.registered_commands, *verify_app.registered_commands):
    _command.cls = Command


def run(command: typer.Typer, arguments: list[str], *, error_code: int) -> int:
    """Run a command line and return its exit code; an error becomes one line on standard error."""
    debug = "--debug" in arguments
    words = [argument for argument in arguments if argument != "--debug"]
    if words[:1] == ["verify"]:
        error_code = 2  # 1 says that something differs
    _quiet(debug)
    try:
        command(words)
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
    for name in ("transformers", "huggingface_hub", "mlx_vlm", "python_multipart"):
        logging.getLogger(name).setLevel(level)
    for name in ("PIL", "libav"):  # they call a file damaged, which we name ourselves
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "debug" if debug else "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
