"""``seeonce bench``: options, and where the report goes. Owns no work: that is ``bench.suite``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.dims import Dims
from bench.suite import BenchOptions, Workload, bench
from cache.errors import InputError


def bench_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Less of everything: a few minutes on a CPU.")
    ] = False,
    dims: Annotated[
        Dims | None, typer.Option(help="Random weights of these dimensions; small on a CPU, else 4B.")
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
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of each pass goes.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the report here, as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure both passes and the store beside mlx-vlm, on drawn screens, in a scratch folder.

    Example: seeonce bench --quick --output bench.md
    """
    if dims is not None and model is not None:
        raise InputError("--dims and --model exclude each other: give random weights or a checkpoint.")
    workloads = tuple(only) if only else () if endpoint else tuple(Workload)
    options = BenchOptions(dims, model, quick, workloads, endpoint, endpoint_model, profile)
    report = bench(options, lambda line: typer.echo(line, err=True))
    if output is not None:
        output.write_text(report.as_markdown(), encoding="utf-8")
    typer.echo(json.dumps(report.as_json()) if as_json else report.verdict)
