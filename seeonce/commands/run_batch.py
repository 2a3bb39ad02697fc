"""``seeonce run-batch``: options and what is printed of a batch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.base.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PARTLY, InputError
from cache.base.home import Home
from cache.base.text import counted, output_path, user_path
from cache.prefixes import prefix_cache_bytes
from infer.limits import BatchLimits
from seeonce.commands.arguments import (
    AllowedFiles,
    AllowRemoteImages,
    KVMemorySize,
    NoStore,
    PrefixCacheSize,
    ServedModelName,
    allowed_folder,
    kv_memory_bytes,
)
from seeonce.runs.lock import lock_file

if TYPE_CHECKING:
    from seeonce.server.batch_run import Batch


def run_batch_command(
    requests: Annotated[Path, typer.Argument(metavar="IN", help="Requests: a JSON object a line.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where their answers go, a line each.")],
    errors: Annotated[
        Path | None, typer.Option(help="Where errors go; by default beside OUT, as OUT.errors.jsonl.")
    ] = None,
    model: ServedModelName = None,
    max_num_seqs: Annotated[int, typer.Option(help="Answers decoded at once, at most.")] = 8,
    kv_memory: KVMemorySize = None,
    prefix_cache: PrefixCacheSize = None,
    allow_files: AllowedFiles = None,
    allow_remote_images: AllowRemoteImages = False,
    no_store: NoStore = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask all again, also what OUT has an answer to.")
    ] = False,
) -> None:
    """Answer a file of requests in OpenAI's batch format.

    Stopped, it goes on with the same command: what OUT has an answer to is not asked again.

    Example: seeonce run-batch requests.jsonl answers.jsonl --model demo
    """
    limits = BatchLimits(max_num_seqs, kv_memory_bytes=kv_memory_bytes(kv_memory))
    files = _files(requests, output, errors)
    import asyncio

    from seeonce.server.app import Server
    from seeonce.server.batch_run import BadLineError, Batch
    from seeonce.server.options import ServeOptions

    folders = tuple(allowed_folder(path) for path in allow_files or ())
    options = ServeOptions(
        model,
        limits,
        folders,
        allow_remote_images,
        not no_store,
        prefix_cache=prefix_cache_bytes(prefix_cache),
    )
    batch = Batch(*files)
    # Not OUT itself, which is written anew: then another batch would lock another file.
    with files[1].with_name(f".{files[1].name}.lock").open("ab") as held:
        if not lock_file(held.fileno()):
            raise InputError(f"{output} is being written by another batch: wait, or give another file.")
        if fresh:
            files[1].unlink(missing_ok=True)
        server = Server(Home.locate(), options, lambda line: typer.echo(line, err=True))
        server.start(batches=False)
        try:
            asyncio.run(batch.run(server.paths, server.identity, 2 * max_num_seqs))
        except KeyboardInterrupt:
            typer.echo(f"{_done(batch)}; interrupted; run the same command to go on.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BadLineError as error:
            raise InputError(f"{requests}, {error}") from error
        finally:
            server.stop()
    if not batch.failed:
        files[2].unlink(missing_ok=True)
    typer.echo(f"{_done(batch)}. Answers: {output}" + (f"; errors: {files[2]}" if batch.failed else ""))
    if batch.failed:
        raise typer.Exit(EXIT_PARTLY if batch.completed else EXIT_ERROR)


def _files(requests: Path, output: Path, errors: Path | None) -> tuple[Path, Path, Path]:
    source, target = user_path(requests), output_path(output, "OUT")
    problems = (
        target.with_name(f"{target.stem}.errors.jsonl") if errors is None else output_path(errors, "--errors")
    )
    if not source.is_file():
        raise InputError(f"{requests}: no such file.")
    if len({os.path.realpath(path) for path in (source, target, problems)}) < 3:
        raise InputError("IN, OUT and --errors are one file: give another.")
    for path in (target, problems):
        if path.exists() and not _is_of_a_batch(path):
            raise InputError(f"{path} is there and has no answers of a batch: give another file.")
    return source, target, problems


def _is_of_a_batch(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return not head or head.startswith(b'{"id": "batch_req_')


def _done(batch: "Batch") -> str:
    known = f", {batch.known} of them known" if batch.known else ""
    return (
        f"{counted(batch.total, 'request')}: {counted(batch.completed, 'answer')}{known}, "
        f"{counted(batch.failed, 'error')}"
    )
