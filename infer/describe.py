"""Pass two from names to results: manifest, language weights, every prompt over every frame.

Owns the order of these steps. Opens no image and evaluates no vision weight.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from cache.errors import StoreError
from cache.home import Home
from cache.manifest import now
from cache.pixel_index import PixelIndex
from cache.store import Store
from cache.usage import entries_in_use
from checkpoint.answering import model_id
from checkpoint.backend import installed_version
from infer.limits import BatchLimits
from infer.plan import Answering, Ask, computed_by, make_plan, plan_id
from infer.prompt import Prompt
from infer.sampling import Sampling
from infer.selection import NewestId, Selected, select
from results.answers import parse_description, without_reasoning
from results.known import AskId, KnownAnswers, Reply
from results.run import Result, RunInfo, RunWriter, Totals, Usage, new_run_id


class Origin(Enum):
    """Where an answer came from."""

    decoded = "decoded"
    known = "known"
    repeated = "repeated"


class Listener(Protocol):
    """Who is told how pass two goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int) -> None:
        """Learn how many results there will be."""

    def result(self, result: Result) -> None:
        """Take note of a finished answer."""


@dataclass(frozen=True, slots=True)
class DescribeOptions:
    """What to ask and how: the options of ``seeonce describe``. ``fresh`` decodes what is known, too."""

    prompts: tuple[Prompt, ...]
    recording: str = "latest"
    model: str | None = None
    output: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: BatchLimits = field(default_factory=BatchLimits)
    name: str = ""
    fresh: bool = False
    prompt_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DescribeResult:
    """How a run ended, and where it lies."""

    info: RunInfo
    path: Path
    interrupted: bool


def describe(
    home: Home,
    options: DescribeOptions,
    newest_id: NewestId,
    listener: Listener,
    known: KnownAnswers | None = None,
) -> DescribeResult:
    """Ask every prompt of every encoded frame of a recording, and write a run.

    What ``known`` has is not decoded again; without it, nothing is looked up and nothing kept.

    Raises:
        NotEncodedError: the recording is not encoded by this model's vision tower.
        CheckpointError: the model is missing or not supported.
        InputError: ``output`` cannot be written.
    """
    selected = select(home, options.recording, options.model, newest_id, listener.say)
    store = Store.open(home, create=False)
    asks = planned(home, selected, options)
    info = _run_info(selected, options, plan_id(asks))
    in_use = entries_in_use(store, "describe", selected.manifest)
    with in_use, RunWriter(home, info, options.output) as writer:
        started, tally = time.perf_counter(), _Tally()
        listener.begin(len(selected.manifest.frames) * len(options.prompts))
        try:
            for origin, result in _results(selected, store, options, asks, known):
                tally.add(origin, result)
                writer.write(result)
                listener.result(result)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            with suppress(StoreError):  # the disk that failed may be the run's own
                writer.write_info(tally.ended(info, "failed", started))
            raise
        info = tally.ended(info, status, started)
        writer.write_info(info)
    return DescribeResult(info, writer.path, interrupted=status == "interrupted")


class _Tally:
    """Counts results as they come."""

    def __init__(self) -> None:
        self._totals = Totals()

    def add(self, origin: Origin, result: Result) -> None:
        totals = self._totals
        self._totals = dataclasses.replace(
            totals,
            num_results=totals.num_results + 1,
            num_errors=totals.num_errors + (result.error is not None),
            num_parsed=totals.num_parsed + (result.parsed is not None),
            num_known=totals.num_known + (origin is Origin.known),
            num_repeated=totals.num_repeated + (origin is Origin.repeated),
            prompt_tokens=totals.prompt_tokens + result.usage.prompt_tokens,
            completion_tokens=totals.completion_tokens + result.usage.completion_tokens,
        )

    def ended(self, info: RunInfo, status: str, started: float) -> RunInfo:
        totals = dataclasses.replace(self._totals, seconds=time.perf_counter() - started)
        return dataclasses.replace(info, ended_at=now(), status=status, totals=totals)


def planned(home: Home, selected: Selected, options: DescribeOptions) -> tuple[Ask, ...]:
    """Return what ``describe`` would ask; loads no model."""
    manifest = selected.manifest
    with PixelIndex(home) as index:
        model = model_id(selected.folder, index)
    answering = Answering(model, manifest.encoder.compute_dtype, computed_by(), options.sampling)
    return make_plan(manifest.frames, options.prompts, answering)


def _results(
    selected: Selected,
    store: Store,
    options: DescribeOptions,
    asks: Sequence[Ask],
    known: KnownAnswers | None,
) -> Iterator[tuple[Origin, Result]]:
    """Yield what is known already, then decode the rest; the model is loaded only for that."""
    recording = selected.manifest.recording.id
    waiting: dict[AskId, list[Ask]] = {}
    for ask in asks:
        reply = None if known is None or options.fresh else known.find(ask.id)
        if reply is not None:
            yield Origin.known, _result(recording, ask, reply)
        elif options.fresh:
            waiting[AskId(f"{ask.id} {ask.number}")] = [ask]  # each is decoded, equal ones too
        else:
            waiting.setdefault(ask.id, []).append(ask)
    for first, reply in _replies(selected, store, options, [same[0] for same in waiting.values()]):
        if known is not None and reply.error is None:
            known.keep(first.id, reply, recording)
        yield Origin.decoded, _result(recording, first, reply)
        for ask in waiting.get(first.id, ())[1:]:
            yield Origin.repeated, _result(recording, ask, reply)


def _replies(
    selected: Selected, store: Store, options: DescribeOptions, asks: Sequence[Ask]
) -> Iterator[tuple[Ask, Reply]]:
    """Decode asks, yielding each as it is finished."""
    if not asks:
        return
    from infer.batching import answer_all
    from infer.mlx_vlm_adapter import LanguageHalf
    from infer.request import Request
    from infer.stored import StoredFeatures
    from infer.tokenizer import ChatTokenizer

    manifest = selected.manifest
    tokenizer = ChatTokenizer(selected.folder, selected.config)
    half = LanguageHalf(selected.folder, selected.config, manifest.encoder.compute_dtype)
    by_number = {ask.number: ask for ask in asks}

    def requests() -> Iterator[Request]:
        for ask in asks:
            tokens = tokenizer.encode(ask.prompt.segments(ask.frame))
            yield Request(ask.number, tokens, (ask.frame,), options.sampling)

    source = StoredFeatures(store, manifest.recording.id)
    for answer in answer_all(requests(), half, source, tokenizer.stop_ids, options.limits):
        text = without_reasoning(tokenizer.decode(answer.tokens), opened=tokenizer.opens_think)
        usage = Usage(len(answer.request.prompt.ids), len(answer.tokens))
        yield by_number[answer.request.id], Reply(text, answer.finish_reason, usage, answer.error)


def _result(recording: str, ask: Ask, reply: Reply) -> Result:
    frame = ask.frame
    return Result(
        recording=recording,
        frame=frame.index,
        timestamp_s=frame.timestamp_s,
        source=frame.source,
        key=frame.key.hex,
        prompt_id=ask.prompt.prompt_id,
        prompt=ask.prompt.text,
        text=reply.text,
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        parsed=parse_description(reply.text),
        error=reply.error,
    )


def _run_info(selected: Selected, options: DescribeOptions, plan: str) -> RunInfo:
    sampling, limits = options.sampling, options.limits
    return RunInfo(
        id=new_run_id(),
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
        versions={name: installed_version(name) for name in ("seeonce", "mlx", "mlx-vlm", "transformers")},
        started_at=now(),
        ended_at=None,
        status="running",
        totals=Totals(),
        name=options.name,
        prompt_names=options.prompt_names,
        plan_id=plan,
    )
