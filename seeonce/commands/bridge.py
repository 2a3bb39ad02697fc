"""``seeonce bridge``: in the place of Escribano's Python bridge."""

import json
import os
import signal
import sys
from contextlib import nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cache.base.errors import EXIT_ERROR, InputError, SeeonceError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.base.text import printable


class Mode(StrEnum):
    """What Escribano starts a bridge for."""

    vlm = "vlm"
    llm = "llm"


class _Log(Listener):
    """Says lines on standard error, or in the file that Escribano names."""

    def say(self, line: str) -> None:
        place = os.environ.get("ESCRIBANO_MLX_LOG_FILE")
        with suppress(OSError), Path(place).open("a") if place else nullcontext(sys.stderr) as file:
            print(f"[seeonce] {printable(line)}", file=file, flush=True)  # which ends no bridge


def bridge_command(
    mode: Annotated[
        Mode, typer.Option(help="vlm describes pictures; llm is for the real Python.")
    ] = Mode.vlm,
    model: Annotated[
        str | None,
        typer.Option(help="A folder or hub id; by default what Escribano names (ESCRIBANO_VLM_MODEL)."),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Resize pictures to at most so many pixels, as encode did.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Write the launcher for ESCRIBANO_PYTHON_PATH.")
    ] = False,
    path: Annotated[Path | None, typer.Option(help="Where to; by default in SEEONCE_HOME.")] = None,
    python: Annotated[
        Path | None, typer.Option(help="The Python that it passes all else to; by default Escribano's own.")
    ] = None,
) -> None:
    """Stand in for Escribano's Python bridge.

    Pictures that the store knows cost no vision; each is encoded once.

    Example: seeonce bridge --install
    """
    if install:
        _install(path, python, max_pixels)
        return
    if path is not None or python is not None:
        raise InputError("--path and --python are for --install")
    try:
        _serve(mode, model or os.environ.get("ESCRIBANO_VLM_MODEL", ""), max_pixels)
    except SeeonceError as error:
        _fatal(" ".join(str(error).split()))


def _install(path: Path | None, python: Path | None, max_pixels: int | None) -> None:
    from seeonce.bridge.launcher import install

    launcher, real = install(Home.locate(), path, python, max_pixels)
    typer.echo(f"{printable(launcher)}: pictures go to seeonce, all else to {printable(real)}.")
    typer.echo(
        f"Start Escribano with ESCRIBANO_PYTHON_PATH={printable(launcher)}, or set it in ~/.escribano/.env."
    )


def _serve(mode: Mode, model: str, max_pixels: int | None) -> None:
    from seeonce.bridge.answers import Answerer
    from seeonce.bridge.socket_server import serve, socket_path

    if mode is Mode.llm:
        raise InputError(
            "seeonce bridge answers --mode vlm: the launcher passes --mode llm to the real Python"
        )
    if not model:
        raise InputError("ESCRIBANO_VLM_MODEL not set: Escribano names a model, or give --model")
    log = _Log()

    def ready() -> None:
        print(json.dumps({"status": "ready", "model": model, "mode": mode.value}), flush=True)

    signal.signal(signal.SIGTERM, _end)
    with Answerer(Home.locate(), model, max_pixels, log) as answerer:
        answerer.load()
        place = socket_path()
        log.say(f"{model}: listening on {place}")
        serve(place, answerer, log.say, ready)


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fatal(problem: str) -> NoReturn:
    print(json.dumps({"status": "fatal", "error": problem}), flush=True)
    print(f"error: {problem}", file=sys.stderr)
    raise typer.Exit(EXIT_ERROR)
