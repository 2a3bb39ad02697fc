"""``verify-cache``: its options, and where the report goes."""

from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.text import output_path
from cache.bucket import BucketStore
from infer.limits import BatchLimits
from seeonce.commands.arguments import AsJson, FromBucket
from seeonce.commands.terminal import Terminal
from seeonce.commands.verify_report import as_json_text, markdown, terminal_lines
from seeonce.verifier.report import Against, Level


def verify_command(
    recording: Annotated[
        str | None, typer.Argument(help="demo, latest (the default), an id, the start of one, or the path.")
    ] = None,
    level: Annotated[
        Level | None, typer.Option(help="How much to prove, each with those before; outputs by default.")
    ] = None,
    sample: Annotated[
        str, typer.Option(help="How many entries to compare with live encoding, or all.")
    ] = "8",
    model: Annotated[
        str | None, typer.Option(help="A folder or hub id; SEEONCE_MODEL, else what encoded it.")
    ] = None,
    whole_store: Annotated[bool, typer.Option("--all", help="Check the bytes of the whole store.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative difference of features that counts as equal.")
    ] = None,
    logprob_tolerance: Annotated[
        float | None, typer.Option(help="Difference of log-probabilities that counts as equal.")
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="Put faults into a copy as well: the check must object to each.")
    ] = False,
    against: Annotated[
        Against | None, typer.Option(help="Also features by transformers, or answers by stream_generate.")
    ] = None,
    source: FromBucket = None,
    seed: Annotated[int, typer.Option(help="Which entries a sample takes.")] = 0,
    max_num_seqs: Annotated[int, typer.Option(help="Answers decoded at once, at most.")] = 8,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file, as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that the store gives what live encoding gives.

    Exit 0 equal, 1 different, 2 could not check. verify-cache is the same command.

    Example: seeonce verify demo --sample all, or verify-cache demo --sample all
    """
    from seeonce.verifier.from_bucket import verify_bucket
    from seeonce.verifier.levels import VerifyOptions, check_whole_store
    from seeonce.verifier.verify import verify

    page = None if report is None else output_path(report, "--report")
    if whole_store and (
        recording is not None or controls or against or source or level not in (None, Level.bytes)
    ):
        raise InputError(
            "--all checks bytes of the whole store: leave RECORDING, --level, --controls and --from out."
        )
    options = VerifyOptions(
        recording=recording if recording is not None else "latest",
        level=level or Level.outputs,
        sample=sample,
        model=model,
        seed=seed,
        tolerance=tolerance,
        logprob_tolerance=logprob_tolerance,
        limits=BatchLimits(max_num_seqs=max_num_seqs),
        controls=controls,
        against=against,
    )
    home = Home.locate()
    with Terminal() as terminal:
        if whole_store:
            found = check_whole_store(home, terminal)
        elif source is not None:
            found = verify_bucket(home, BucketStore.open(source), options, terminal)
        else:
            found = verify(home, options, terminal)
    if page is not None:
        try:
            page.write_text(markdown(found), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--report {page} cannot be written ({error.strerror}): give another file."
            ) from error
    typer.echo(as_json_text(found) if as_json else "\n".join(terminal_lines(found)))
    raise typer.Exit(found.exit_code)
