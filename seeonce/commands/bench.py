"""``seeonce bench``: its options, and where the report goes."""

import json
import math
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cache.base.errors import InputError
from cache.base.text import output_path
from seeonce.bench.options import BenchOptions, Dims, Workload
from seeonce.commands.arguments import AsJson


def bench_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything: 2 to 3 minutes on a CPU instead of 20.")
    ] = False,
    dims: Annotated[
        Dims | None, typer.Option(help="Random weights of these dimensions; small on a CPU, else 4B or 2B.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A real checkpoint instead: demo, a folder, a hub id.")
    ] = None,
    only: Annotated[list[Workload] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server to measure beside, as http://localhost:8000"),
    ] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The model's name at that server.")] = None,
    endpoint_timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="How long one of its answers may take.")
    ] = 300.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of each pass goes.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the report here after each workload: Markdown, or JSON by name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure both passes and the store beside mlx-vlm.

    On drawn screens, in a scratch folder.

    With --endpoint, answers 8 questions about 20 drawn frames beside that server; --model should be the
    checkpoint that it serves. The other workloads then run only if --only names them.

    Example: seeonce bench --quick --output bench.md
    """
    if dims is not None and model is not None:
        raise InputError("--dims and --model exclude each other: give random weights or a checkpoint.")
    if endpoint is None and endpoint_model is not None:
        raise InputError("--endpoint-model names a model of a server: give --endpoint, too.")
    if endpoint is not None and not _is_address(endpoint):
        raise InputError(f"--endpoint {endpoint} is no address: give one as http://localhost:8000")
    if not math.isfinite(endpoint_timeout):
        raise InputError(f"--endpoint-timeout is {endpoint_timeout}; expected a number of seconds, as 300")
    output = None if output is None else output_path(output, "--output")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(f"--output {output} cannot be written: name a file in a folder that exists.")
    workloads = tuple(only) if only else () if endpoint else tuple(Workload)
    options = BenchOptions(dims, model, quick, workloads, endpoint, endpoint_model, endpoint_timeout, profile)
    from seeonce.bench.suite import bench

    report = bench(
        options,
        lambda line: typer.echo(line, err=True),
        lambda so_far: None if output is None else so_far.write(output),
    )
    typer.echo(json.dumps(report.as_json()) if as_json else report.verdict)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no port, a bracket that is not closed
        return False
