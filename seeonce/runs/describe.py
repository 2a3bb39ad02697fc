"""Pass two from names to results: manifest, plan, every prompt over every frame, a run on disk.

Owns the order of these steps, and whether a run that was stopped may go on. Opens no image and evaluates
no vision weight.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cache.errors import InputError
from cache.home import Home
from cache.manifest import now
from cache.pixel_index import PixelIndex
from cache.store import Store
from cache.usage import entries_in_use
from checkpoint.answering import model_id
from checkpoint.backend import installed_version
from infer.grouping import ImagePosition, Showing
from infer.limits import BatchLimits
from infer.prompt import Prompt
from infer.sampling import Sampling
from seeonce.runs.answering import Answerer
from seeonce.runs.known import KnownAnswers
from seeonce.runs.lock import RunLock
from seeonce.runs.plan import Answering, Ask, computed_by, make_plan, plan_id
from seeonce.runs.reading import read_info, read_results
from seeonce.runs.run import Result, RunInfo, Totals, new_run_id
from seeonce.runs.running import Listener, Running, Work, split
from seeonce.runs.runs import select_run
from seeonce.runs.selection import LATEST, Selected, select
from seeonce.runs.writing import OutputFile, RunWriter

_VERSIONS = ("seeonce", "mlx", "mlx-vlm", "transformers")


@dataclass(frozen=True, slots=True)
class DescribeOptions:
    """What to ask and how: the options of ``seeonce describe``. ``fresh`` decodes what is known, too."""

    prompts: tuple[Prompt, ...]
    recording: str = LATEST
    model: str | None = None
    output: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: BatchLimits = field(default_factory=BatchLimits)
    name: str = ""
    fresh: bool = False
    prompt_names: tuple[str, ...] = ()
    showing: Showing = field(default_factory=Showing)


@dataclass(frozen=True, slots=True)
class DescribeResult:
    """How a run ended, and where it lies. ``was_done`` tells that there was nothing left to ask."""

    info: RunInfo
    path: Path
    interrupted: bool
    was_done: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What several runs of one command share: the loaded model, and a file of results."""

    answerer: Answerer = field(default_factory=Answerer)
    output: OutputFile | None = None


def describe(
    home: Home,
    options: DescribeOptions,
    listener: Listener,
    known: KnownAnswers | None = None,
    shared: Shared | None = None,
) -> DescribeResult:
    """Ask every prompt of every encoded frame of a recording, and write a run.

    What ``known`` has is not decoded again; without it, nothing is looked up and nothing kept.

    Raises:
        NotEncodedError: the recording is not encoded by this model's vision tower.
        CheckpointError: the model is missing or not supported.
        InputError: ``output`` cannot be written.
    """
    selected = select(home, options.recording, options.model, listener.say)
    asks = planned(home, selected, options)
    info = _run_info(home, selected, options, plan_id(asks))
    with ExitStack() as stack:
        if shared is None:
            output = None if options.output is None else stack.enter_context(OutputFile(options.output))
            shared = Shared(output=output)
        stack.enter_context(RunLock(home.runs / info.id))
        run = _Run(home, selected, options, info, (), asks)
        return run.go(listener, known, shared)


def resume(
    home: Home,
    selector: str,
    listener: Listener,
    known: KnownAnswers | None = None,
    shared: Shared | None = None,
) -> DescribeResult:
    """Go on with a run that was stopped, under its own settings: lines that are there are not asked again.

    Its limits were found sound when it began; on another combination of versions and device it is refused.

    Raises:
        InputError: no such run, it goes on in another process, or what it asked would now be answered by
            something else.
        NotEncodedError: the recording is no longer encoded.
        StoreError: the run is of another version.
    """
    run_id = select_run(home, selector, lambda _: None).info.id
    path = home.runs / run_id
    with RunLock(path):  # before anything is read: nobody adds a line from here on
        info = read_info(path)
        options = options_of(info)
        selected = select(home, info.recording, info.model_path, listener.say, encoder_id=info.encoder_id)
        asks = planned(home, selected, options)
        _check_same(home, info, selected, asks)
        kept, left = split(read_results(path, lambda _: None, logprobs=True), asks)
        shared = shared or Shared()
        if not left and info.status == "done" and shared.output is None:
            return DescribeResult(info, path, interrupted=False, was_done=True)
        was_done = not left and info.status == "done"
        done = _Run(home, selected, options, info, kept, left).go(listener, known, shared)
        return dataclasses.replace(done, was_done=was_done)


def options_of(info: RunInfo) -> DescribeOptions:
    """Return the options that a run was made with."""
    return DescribeOptions(
        prompts=tuple(Prompt(text) for text in info.prompts),
        recording=info.recording,
        model=info.model_path,
        sampling=Sampling(
            temperature=info.temperature,
            top_p=info.top_p,
            seed=info.seed,
            max_tokens=info.max_tokens,
            top_k=info.top_k,
            min_p=info.min_p,
            repetition_penalty=info.repetition_penalty,
            repetition_window=info.repetition_window,
            stop=info.stop,
            logprobs=info.logprobs,
            schema=info.schema,
        ),
        limits=BatchLimits(
            info.max_num_seqs,
            info.prefill_batch_size,
            info.prefill_step_size,
            info.kv_memory_bytes,
            info.share_prefixes,
        ),
        name=info.name,
        fresh=info.fresh,
        prompt_names=info.prompt_names,
        showing=Showing(info.frames_per_prompt, info.stride, ImagePosition(info.image_position), info.system),
    )


def planned(home: Home, selected: Selected, options: DescribeOptions) -> tuple[Ask, ...]:
    """Return what ``describe`` would ask; loads no model."""
    manifest = selected.manifest
    dtype = manifest.encoder.compute_dtype
    answering = Answering(_model_id(home, selected), dtype, computed_by(), options.sampling, options.showing)
    return make_plan(manifest.frames, options.prompts, answering, manifest.recording.name)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A run that is about to begin or to go on; its lock is held."""

    home: Home
    selected: Selected
    options: DescribeOptions
    info: RunInfo
    kept: Sequence[Result]
    asks: Sequence[Ask]

    def go(self, listener: Listener, known: KnownAnswers | None, shared: Shared) -> DescribeResult:
        store = Store.open(self.home, create=False)
        options = self.options
        work = Work(
            self.selected, store, options.sampling, options.limits, shared.answerer, known, options.fresh
        )
        path = self.home.runs / self.info.id
        begun = dataclasses.replace(self.info, status="running", ended_at=None)
        in_use = entries_in_use(store, "describe", self.selected.manifest)
        with in_use, RunWriter(path, begun, shared.output, self.kept) as writer:
            info = Running(work, writer, listener).go(begun, self.kept, self.asks)
        return DescribeResult(info, path, interrupted=info.status == "interrupted")


def _check_same(home: Home, info: RunInfo, selected: Selected, asks: Sequence[Ask]) -> None:
    """Raise ``InputError`` when the answers to come would be others than those of a whole run."""
    if plan_id(asks) == info.plan_id:
        return
    versions = {name: installed_version(name) for name in _VERSIONS}
    if _model_id(home, selected) != info.model_id:
        why = f"{info.model_path} has other files now"
    elif selected.manifest.encoder.encoder_id.hex != info.encoder_id:
        why = f"{info.recording} is no longer encoded as it was"
    elif versions != info.versions:
        other = [name for name in versions if versions[name] != info.versions.get(name)]
        why = f"it was begun with {', '.join(f'{name} {info.versions.get(name)}' for name in other)}"
    else:
        why = f"the frames of {info.recording}, or the device, are others now"
    raise InputError(
        f"The run {info.id} cannot go on ({why}): begin a new one with seeonce describe; its answers stay."
    )


def _model_id(home: Home, selected: Selected) -> str:
    with PixelIndex(home) as index:
        return model_id(selected.folder, index)


def _run_info(home: Home, selected: Selected, options: DescribeOptions, plan: str) -> RunInfo:
    sampling, limits = options.sampling, options.limits
    return RunInfo(
        id=new_run_id(home.runs),
        recording=selected.manifest.recording.id,
        encoder_id=selected.manifest.encoder.encoder_id.hex,
        model=selected.model,
        model_path=str(selected.folder.path),
        revision=selected.folder.revision,
        prompts=tuple(prompt.text for prompt in options.prompts),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        max_num_seqs=limits.max_num_seqs,
        prefill_batch_size=limits.prefill_batch_size,
        prefill_step_size=limits.prefill_step_size,
        compute_dtype=selected.manifest.encoder.compute_dtype,
        versions={name: installed_version(name) for name in _VERSIONS},
        started_at=now(),
        ended_at=None,
        status="running",
        totals=Totals(),
        name=options.name,
        prompt_names=options.prompt_names,
        plan_id=plan,
        model_id=_model_id(home, selected),
        kv_memory_bytes=limits.kv_memory_bytes,
        share_prefixes=limits.share_prefixes,
        fresh=options.fresh,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        repetition_window=sampling.repetition_window,
        stop=sampling.stop,
        logprobs=sampling.logprobs,
        schema=sampling.schema,
        frames_per_prompt=options.showing.frames_per_prompt,
        stride=options.showing.stride,
        image_position=options.showing.image_position.value,
        system=options.showing.system,
    )
