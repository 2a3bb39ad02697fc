"""``seeonce describe``: options and the printed form."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Annotated

import typer

from cache.base.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PARTLY, InputError, SeeonceError, code_of_all
from cache.base.text import counted
from cache.prefixes import OPTION
from infer.limits import BatchLimits
from infer.sampling import Sampling
from seeonce.commands.arguments import (
    AsJson,
    ByEngine,
    FromBucket,
    GpusPerWorker,
    KVMemorySize,
    MaxNumSeqs,
    NumWorkers,
    PrefixCacheSize,
    kv_memory_bytes,
    num_in_flight,
    opened_session,
    terminal_width,
)
from seeonce.commands.score import truth_lines
from seeonce.commands.table import answer_table
from seeonce.commands.terminal import Terminal
from seeonce.runs.describe import DescribeResult, Session, resume
from seeonce.runs.find import load_run
from seeonce.runs.options import DescribeOptions
from seeonce.runs.presets import PRESETS
from seeonce.runs.prompts import ImagePosition, Showing, collect_prompts, read_schema, read_system
from seeonce.runs.recording import LATEST, select
from seeonce.runs.run import Totals, prompt_order
from seeonce.verifier.canary import describe_soundly

_WITH_RESUME = (
    "resume_run", "output", "prefix_cache", "source", "engine", "workers", "gpus_per_worker", "as_json"
)  # fmt: skip
_WORTH_SAYING_S = 1.0
_ROOM = 1.05  # for what is said of each prefix, and for a few more frames
PresetName = StrEnum("PresetName", list(PRESETS))  # type: ignore[misc]
_RECORDING = "latest, demo, an id, the start of one, or the path; several make one run each."
Recordings = Annotated[list[str] | None, typer.Argument(metavar="RECORDING", help=_RECORDING)]
Model = Annotated[str | None, typer.Option(help="A folder or hub id; SEEONCE_MODEL, else what encoded it.")]


def describe_command(
    context: typer.Context,
    recording: Recordings = None,
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A question for every frame; repeatable.")
    ] = None,
    prompt_file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A file with one; repeatable.")
    ] = None,
    preset: Annotated[
        PresetName | None, typer.Option(help="A prompt with the form of its answers: what Escribano asks.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system text, before every prompt.")] = None,
    system_file: Annotated[Path | None, typer.Option(help="A file with one.")] = None,
    image_position: Annotated[
        ImagePosition, typer.Option(help="Images before the prompt's text (shared by all prompts), or after.")
    ] = ImagePosition.before,
    frames_per_prompt: Annotated[int, typer.Option(help="Frames that one prompt shows together.")] = 1,
    stride: Annotated[
        int | None, typer.Option(help="Frames from one group to the next; by default no overlap.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results here too, as JSON lines.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many of the best tokens; 0: all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Least share of the best token's probability.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes recent tokens less likely.")] = 1.0,
    repetition_window: Annotated[int, typer.Option(help="How many tokens are recent.")] = 20,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that ends an answer; repeatable.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="A file of JSON Schema that answers follow; or description, the line.")
    ] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking", help="Let the model reason first, where its template can.")
    ] = False,
    logprobs: Annotated[
        int | None, typer.Option(help="Note log-probabilities, and so many of the best tokens beside each.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampled answers repeat under the same seed.")] = 0,
    max_num_seqs: MaxNumSeqs = "auto",
    prefill_batch_size: Annotated[int, typer.Option(help="Prompts prefilled together.")] = 4,
    prefill_step_size: Annotated[int, typer.Option(help="Tokens of a prompt prefilled at a time.")] = 2048,
    kv_memory: KVMemorySize = None,
    prefix_cache: PrefixCacheSize = None,
    name: Annotated[str, typer.Option(help="A name for the run, to find it by.")] = "",
    no_sharing: Annotated[
        bool, typer.Option("--no-sharing", help="Prefill each prompt whole, and its image with it.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Decode what earlier runs answered, too.")] = False,
    resume_run: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped, as it was begun."),
    ] = None,
    source: FromBucket = None,
    engine: ByEngine = None,
    workers: NumWorkers = None,
    gpus_per_worker: GpusPerWorker = 0,
    as_json: AsJson = False,
) -> None:
    """Ask questions about every encoded frame, from the store.

    No image is opened.

    In a prompt, {timestamp}, {frame} and {recording} stand for those of the frame.

    Example: seeonce describe latest --prompt "Which applications are open?" --output apps.jsonl
    """
    texts, form = prompt or [], None if schema is None else read_schema(schema)
    if preset is not None:
        texts, form, max_tokens = _of_preset(context, preset, max_tokens)
    options = DescribeOptions(
        prompts=collect_prompts(texts, prompt_file or []),
        model=model,
        sampling=Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_tokens=max_tokens,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
            stop=tuple(dict.fromkeys(stop or ())),
            logprobs=logprobs,
            schema=form,
        ),
        limits=BatchLimits(
            num_in_flight(max_num_seqs),
            prefill_batch_size,
            prefill_step_size,
            kv_memory_bytes(kv_memory),
            not no_sharing,
        ),
        name=name,
        fresh=fresh,
        showing=Showing(
            frames_per_prompt, stride, image_position, read_system(system, system_file), thinking
        ),
    )
    if resume_run is not None:
        _only_with_resume(context)
    if no_sharing and prefix_cache is not None:
        raise InputError("--no-sharing prefills each prompt whole: leave out --prefix-cache.")
    with opened_session(output, prefix_cache, source, engine, workers, gpus_per_worker) as session:
        if resume_run is not None:
            code = _resume(session, resume_run, as_json=as_json)
        else:
            code = _each(session, options, list(dict.fromkeys(recording or [LATEST])), as_json=as_json)
    raise typer.Exit(code)


def _of_preset(context: typer.Context, preset: PresetName, max_tokens: int) -> tuple[list[str], str, int]:
    """Return the prompt, the schema and the length of answers of a preset."""
    given = [
        name for name in ("prompt", "prompt_file", "schema", "frames_per_prompt") if _was_given(context, name)
    ]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(
            f"--preset {preset.value} says what is asked and how it is answered: leave out {words}."
        )
    found = PRESETS[preset.value]
    length = max_tokens if _was_given(context, "max_tokens") else found.max_tokens
    return [found.prompt], found.schema, length


def _each(session: Session, options: DescribeOptions, recordings: Sequence[str], *, as_json: bool) -> int:
    """Ask about each recording; one that fails is named, and the others go on. Return the exit code."""
    codes = []
    for recording in recordings:
        try:
            codes.append(_describe(session, replace(options, recording=recording), as_json=as_json))
        except SeeonceError as error:
            if len(recordings) == 1:
                raise
            typer.echo(f"error: {recording}: {' '.join(str(error).split())}", err=True)
            codes.append(EXIT_ERROR)
        if codes[-1] == EXIT_INTERRUPTED:
            break
    return code_of_all(codes)


def _describe(session: Session, options: DescribeOptions, *, as_json: bool) -> int:
    with Terminal() as terminal:
        selected = select(session.home, options.recording, options.model, terminal.say, bucket=session.bucket)
        done = describe_soundly(session, selected, options, terminal)
    return _print(done, session, as_json=as_json)


def _resume(session: Session, selector: str, *, as_json: bool) -> int:
    with Terminal() as terminal:
        done = resume(session, selector, terminal)
    return _print(done, session, as_json=as_json)


def _print(done: DescribeResult, session: Session, *, as_json: bool) -> int:
    """Print how a run ended; return the exit code."""
    code, run = _exit_code(done), load_run(done.path)
    if code == 0 and run.answers and not any(answer.text for answer in run.answers):
        typer.echo("error: All answers are empty: look at the prompt, --stop and the model.", err=True)
        code = EXIT_ERROR
    if as_json:
        typer.echo(json.dumps(asdict(done.info) | {"path": str(done.path)}))
        return code
    if not done.was_done:
        answers = sorted(run.answers, key=prompt_order(done.info.prompts))
        typer.echo(answer_table(answers, terminal_width()))
    advice = [] if session.prefix_cache or done.was_done else _prefix_cache_advice(done.info.totals)
    typer.echo("\n".join([_summary(done), *advice, *truth_lines(run)]))
    return code


def _only_with_resume(context: typer.Context) -> None:
    """Refuse options beside ``--resume`` that would make another run of it."""
    given = [
        parameter.opts[0] if parameter.param_type_name == "option" else "RECORDING"
        for parameter in context.command.params
        if parameter.name not in _WITH_RESUME and _was_given(context, str(parameter.name))
    ]
    if given:
        raise InputError(f"--resume goes on as the run was begun: leave out {', '.join(given)}.")


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _summary(done: DescribeResult) -> str:
    totals = done.info.totals
    if done.was_done:
        return (
            f"The run {done.info.id} was done: {counted(totals.num_results, 'answer')}, nothing left to ask. "
            f"Results: {done.path / 'results.jsonl'}"
        )
    go_on = f"interrupted; seeonce describe --resume {done.info.id} goes on"
    state = go_on if done.interrupted else "done"
    again = f" ({totals.num_images_again} of them again)" if totals.num_images_again else ""
    parts = (
        (totals.num_known, f"{totals.num_known} known from earlier runs"),
        (totals.num_repeated, f"{totals.num_repeated} repeated within this one"),
        (True, f"{totals.prompt_tokens:,} prompt and {totals.completion_tokens:,} answer tokens"),
        (totals.num_images, f"{counted(totals.num_images, 'image')} prefilled{again}"),
        (totals.num_images_read, f"{counted(totals.num_images_read, 'image')} from the prefix cache"),
    )
    return (
        f"{done.info.recording}: {counted(totals.num_results, 'answer')} in {totals.seconds:.1f} s, "
        f"{totals.num_parsed} parsed, {counted(totals.num_errors, 'error')}, "
        f"{', '.join(text for is_so, text in parts if is_so)}, no image opened; {state}. Results: "
        f"{done.path / 'results.jsonl'}"
    )


def _prefix_cache_advice(totals: Totals) -> list[str]:
    """Say what a prefix cache would spare the next prompt, where anybody would notice."""
    if totals.prefix_seconds < _WORTH_SAYING_S:
        return []
    unit, name = (10**9, "GB") if totals.prefix_bytes >= 10**9 else (10**6, "MB")
    size = f"{ceil(totals.prefix_bytes * _ROOM / unit):,}{name}".replace(",", "")
    skipped = f"{totals.prefix_seconds:.0f} s of prefill"
    return [f"With {OPTION} {size} the next prompt over these frames would skip {skipped}."]


def _exit_code(done: DescribeResult) -> int:
    totals = done.info.totals
    if done.interrupted:
        return EXIT_INTERRUPTED
    if totals.num_errors:
        return EXIT_ERROR if totals.num_errors == totals.num_results else EXIT_PARTLY
    return 0
