"""Pass two from names to results: manifest, plan, every prompt over every frame, a run on disk.

Opens no image and evaluates no vision weight.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from cache.base.canonical_json import JsonValue, canonical
from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.layout import now
from cache.leases import entries_in_use
from cache.manifest import FrameEntry
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint.backend import installed_version
from checkpoint.identity import model_id
from infer.canary import combination
from infer.limits import BatchLimits
from infer.prompt import Image, Prompt, Segment, Showing, split_by_frame
from infer.sampling import Sampling, before_stop
from infer.schema import DESCRIPTION
from seeonce.runs.lock import RunLock
from seeonce.runs.options import DescribeOptions, options_of, run_info, versions
from seeonce.runs.parse import Description, parse_description, without_reasoning
from seeonce.runs.recording import Selected, select
from seeonce.runs.run import (
    AskId,
    Candidate,
    KnownAnswers,
    OutputFile,
    Reply,
    Result,
    RunInfo,
    RunWriter,
    TokenLogprob,
    Totals,
    Usage,
    new_run_id,
    read_info,
    read_results,
)
from seeonce.runs.runs import select_run

if TYPE_CHECKING:
    from cache.store import Store
    from infer.engine import EngineStats
    from infer.hooks import RowHooks, TokenLogprobs
    from infer.limits import BatchLimits
    from infer.model import LanguageHalf
    from infer.sampling import Sampling
    from infer.schema import Guide
    from infer.sequence import Answer
    from infer.tokenizer import ChatTokenizer

_CONTEXT = "seeonce 2026-11 asks, version 1"

ANSWER_EPOCH = 1
"""Raised when our own decoding or reading of answers changes, so that older ones are no longer known."""


@dataclass(frozen=True, slots=True)
class DescribeResult:
    """How a run ended, and where it lies. ``was_done`` tells that there was nothing left to ask."""

    info: RunInfo
    path: Path
    interrupted: bool
    was_done: bool = False


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything but the question that an answer depends on.

    ``model_id`` is the digest of the checkpoint's files; ``computed_by`` names device and versions.
    """

    model_id: str
    compute_dtype: str
    computed_by: str
    sampling: Sampling
    showing: Showing = field(default_factory=Showing)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a run: a prompt over one or several frames. ``number`` counts them from 0.

    ``numbered`` tells that the frames were shown with their numbers, and each is to be answered for.
    """

    number: int
    id: AskId
    prompt: Prompt
    frames: tuple[FrameEntry, ...]
    segments: tuple[Segment, ...]
    system: str | None = None
    numbered: bool = False
    schema: str | None = None

    @property
    def group(self) -> tuple[int, ...]:
        """The indexes of its frames."""
        return tuple(frame.index for frame in self.frames)


def computed_by() -> str:
    """Name what computes here: its device, its versions and the epoch of our engine."""
    here = combination()
    texts = [f"{name} {installed_version(name)}" for name in ("transformers", "tokenizers")]
    return f"{here}, {here.dtype or 'default'}, engine {here.engine_epoch}, {', '.join(texts)}"


def make_plan(
    frames: Sequence[FrameEntry], prompts: Sequence[Prompt], answering: Answering, recording: str = ""
) -> tuple[Ask, ...]:
    """Return the asks of a run; ``recording`` is the name that ``{recording}`` stands for."""
    showing, asks = answering.showing, list[Ask]()
    for group in showing.groups(frames):
        for prompt in prompts:
            segments, number = showing.segments(prompt.text, group, recording), len(asks)
            name = ask_id(segments, answering)
            asks.append(
                Ask(
                    number,
                    name,
                    prompt,
                    group,
                    segments,
                    showing.system,
                    numbered=showing.frames_per_prompt > 1,
                    schema=answering.sampling.schema,
                )
            )
    return tuple(asks)


def ask_id(segments: Sequence[Segment], answering: Answering) -> AskId:
    """Return the digest of a question and of everything else that its answer depends on.

    The frames count by their keys, in order: a key names pixels, preprocessing, vision weights and type.
    """
    sampling = answering.sampling
    if sampling.temperature == 0:  # then nothing is drawn, and the seed is of no consequence
        sampling = replace(sampling, top_p=1.0, top_k=0, min_p=0.0, seed=0)
    document: JsonValue = {
        "epoch": ANSWER_EPOCH,
        "model": answering.model_id,
        "compute_dtype": answering.compute_dtype,
        "computed_by": answering.computed_by,
        "sampling": asdict(sampling),  # every field, those that come later too
        "system": answering.showing.system,
        "segments": [_segment(segment) for segment in segments],
    }
    return AskId(blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest())


def plan_id(asks: Sequence[Ask]) -> str:
    """Return the digest of all asks of a run, with what its lines say of the frames that they are about.

    Another recording of the same pictures has the same asks: a run about it is another run.
    """
    document: JsonValue = [
        [ask.id, ask.prompt.prompt_id, [_place(frame) for frame in ask.frames]] for ask in asks
    ]
    return blake3(canonical(document), derive_key_context=_CONTEXT).hexdigest()


def _place(frame: FrameEntry) -> JsonValue:
    return [frame.index, frame.timestamp_s, frame.source]


def _segment(segment: Segment) -> JsonValue:
    return ["image", segment.frame.key.hex] if isinstance(segment, Image) else ["text", segment.text]


def results_of(ask: Ask, reply: Reply, recording: str) -> list[Result]:
    """Return what a reply says of each frame of its ask."""
    texts: Sequence[str | None] = [reply.text] * len(ask.frames)
    if ask.numbered and reply.error is None:
        texts = split_by_frame(reply.text, len(ask.frames))
    return [_result(ask, number, text, reply, recording) for number, text in enumerate(texts)]


def _result(ask: Ask, number: int, text: str | None, reply: Reply, recording: str) -> Result:
    frame, error = ask.frames[number], reply.error
    parsed: Description | JsonValue = None
    if error is None and ask.schema is not None:
        parsed, error = _under_schema(ask.schema, text, reply, is_last=number == len(ask.frames) - 1)
    elif error is None and text is None:
        error = _left_out(number + 1, reply)
    elif error is None and text is not None:
        parsed = parse_description(text)
    return Result(
        recording=recording,
        frame=frame.index,
        timestamp_s=frame.timestamp_s,
        source=frame.source,
        key=frame.key.hex,
        prompt_id=ask.prompt.prompt_id,
        prompt=ask.prompt.text,
        text=text or "",
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        parsed=parsed,
        error=error,
        group=ask.group,
        logprobs=reply.logprobs,
    )


def _under_schema(
    schema: str, text: str | None, reply: Reply, *, is_last: bool
) -> tuple[Description | JsonValue, str | None]:
    """Take an answer apart; one that was cut is an error, even where what is left could be read.

    Of several frames the last that is there was cut, those before it are whole.
    """
    cut = (
        f"The answer ended by {reply.finish_reason} after {reply.usage.completion_tokens} tokens, before its "
        "schema was fulfilled: give more --max-tokens, or a schema with bounds."
    )
    if text is None or (reply.finish_reason != "stop" and (is_last or reply.text.endswith(text))):
        return None, cut
    if schema == DESCRIPTION:
        found = parse_description(text)
        return found, None if found is not None else cut
    try:
        return json.loads(text, parse_float=_finite), None
    except json.JSONDecodeError:
        return None, cut
    except (ValueError, RecursionError) as error:
        return None, f"The answer is JSON that cannot be kept ({error}): give a schema with bounds."


def _finite(text: str) -> float:
    """Read a number; one that only infinity stands for would make results.jsonl no JSON."""
    if isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:20]} is too large")


def _left_out(number: int, reply: Reply) -> str:
    said = " ".join(reply.text.split())[:80]
    return (
        f"The answer has no line for Frame {number}: it ended by {reply.finish_reason} after "
        f"{reply.usage.completion_tokens} tokens and begins {said!r}. Show fewer frames together, or give "
        "more --max-tokens."
    )


@dataclass(frozen=True, eq=False)
class _Loaded:
    path: Path
    dtype: str
    tokenizer: "ChatTokenizer"
    half: "LanguageHalf"

    @cached_property
    def guide(self) -> "Guide":
        """The tokenizer as a schema needs it, which takes about a second."""
        from infer.schema import Guide

        return Guide(self.tokenizer.backend, self.tokenizer.stop_ids)


class Answerer:
    """Answers asks with the checkpoint at hand; one checkpoint is held at a time."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def replies(
        self,
        selected: Selected,
        store: "Store",
        asks: Sequence[Ask],
        sampling: "Sampling",
        limits: "BatchLimits",
        report: "Callable[[EngineStats], None]",
    ) -> Iterator[tuple[Ask, Reply]]:
        """Answer ``asks``, yielding each as it is finished; ``report`` is told at the end what was done.

        Raises:
            CheckpointError: the model does not load.
        """
        from infer.engine import answer_all
        from infer.features import StoredFeatures
        from infer.sequence import Request, request_hooks

        loaded = self._load(selected)
        tokenizer, by_number = loaded.tokenizer, {ask.number: ask for ask in asks}
        requests = (
            Request(ask.number, tokenizer.encode(ask.segments, ask.system), ask.frames, sampling)
            for ask in asks
        )
        source = StoredFeatures(store, selected.manifest.recording.id)

        def hooks_of(request: Request) -> "RowHooks":
            schema = None
            if sampling.schema is not None:
                numbered = by_number[request.id].numbered
                schema = loaded.guide.processor(sampling.schema, len(request.frames), numbered=numbered)
            return request_hooks(request, tokenizer.decode, schema)

        answers = answer_all(requests, loaded.half, source, tokenizer.stop_ids, limits, hooks_of, report)
        for answer in answers:
            yield by_number[answer.request.id], _reply(answer, tokenizer)

    def _load(self, selected: Selected) -> _Loaded:
        from infer.model import LanguageHalf
        from infer.tokenizer import ChatTokenizer

        folder, config = selected.folder, selected.config
        dtype = selected.manifest.encoder.compute_dtype
        loaded = self._loaded
        if loaded is None or (loaded.path, loaded.dtype) != (folder.path, dtype):
            self._loaded = None  # before the next one comes: two may not fit
            tokenizer = ChatTokenizer(folder, config)
            loaded = _Loaded(folder.path, dtype, tokenizer, LanguageHalf(folder, config, dtype))
            self._loaded = loaded
        return loaded


def _reply(answer: "Answer", tokenizer: "ChatTokenizer") -> Reply:
    whole, sampling = tokenizer.decode(answer.tokens), answer.request.sampling
    kept = before_stop(whole, sampling.stop)
    finish_reason = answer.finish_reason if kept == whole else "stop"
    if sampling.schema is None:  # under a schema an answer cannot reason
        kept = without_reasoning(kept, opened=tokenizer.opens_think)
    return Reply(
        kept,
        finish_reason,
        Usage(len(answer.request.prompt.ids), len(answer.tokens)),
        None if sampling.logprobs is None else _logprobs(answer.logprobs, tokenizer),
        answer.error,
    )


def _logprobs(noted: "Sequence[TokenLogprobs]", tokenizer: "ChatTokenizer") -> tuple[TokenLogprob, ...]:
    def candidate(token: int, logprob: float) -> Candidate:
        return Candidate(token, tokenizer.decode([token]), logprob)

    return tuple(
        TokenLogprob(
            one.token,
            tokenizer.decode([one.token]),
            one.logprob,
            tuple(candidate(*each) for each in one.top),
        )
        for one in noted
    )


class Listener(Protocol):
    """Who is told how pass two goes."""

    def say(self, line: str) -> None:
        """Take one line for the user."""

    def begin(self, num_results: int) -> None:
        """Learn how many results there will be."""

    def result(self, result: Result) -> None:
        """Take note of a finished answer."""


class Origin(Enum):
    """Where an answer came from."""

    decoded = "decoded"
    known = "known"
    repeated = "repeated"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a run answers, and with what. ``known`` is ``None`` where nothing is looked up and kept."""

    selected: Selected
    store: Store
    sampling: Sampling
    limits: BatchLimits
    answerer: Answerer
    known: KnownAnswers | None
    fresh: bool


def split(results: Sequence[Result], asks: Sequence[Ask]) -> tuple[list[Result], list[Ask]]:
    """Return the lines of asks that are answered whole, and the asks that are not; an error is no answer."""
    answered: dict[tuple[str, tuple[int, ...]], dict[int, Result]] = {}
    for line in results:
        if line.error is None:
            answered.setdefault((line.prompt_id, line.group), {})[line.frame] = line
    kept: list[Result] = []
    left: list[Ask] = []
    for ask in asks:
        found = answered.get((ask.prompt.prompt_id, ask.group), {})
        if found.keys() == set(ask.group):
            kept += found.values()
        else:
            left.append(ask)
    return kept, left


class Running:
    """One run: asks in, lines out."""

    def __init__(self, work: Work, writer: RunWriter, listener: Listener) -> None:
        """Write to ``writer``, which has the lines that are kept already."""
        self._work, self._writer, self._listener = work, writer, listener
        self._totals = Totals()

    def go(self, info: RunInfo, kept: Sequence[Result], asks: Sequence[Ask]) -> RunInfo:
        """Answer ``asks``, and return how the run ended; run.json says so too."""
        started = time.perf_counter()
        self._listener.begin(len(kept) + sum(len(ask.frames) for ask in asks))
        requests: set[tuple[str, tuple[int, ...]]] = set()
        for result in kept:
            if (result.prompt_id, result.group) not in requests:
                self._count_tokens(result.usage)
            requests.add((result.prompt_id, result.group))
            self._count(result)
        before = info.totals
        self._add(
            num_known=before.num_known,
            num_repeated=before.num_repeated,
            num_images=before.num_images,
            num_images_again=before.num_images_again,
        )
        try:
            for origin, ask, reply in self._answers(asks):
                self._take(origin, ask, reply)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            with suppress(StoreError):  # the disk that failed may be the run's own
                self._writer.write_info(self._ended(info, "failed", started))
            raise
        info = self._ended(info, status, started)
        self._writer.write_info(info)
        return info

    def _take(self, origin: Origin, ask: Ask, reply: Reply) -> None:
        """Write a reply as lines, one a frame, and count it."""
        self._count_tokens(reply.usage)
        for result in results_of(ask, reply, self._work.selected.manifest.recording.id):
            self._add(num_known=origin is Origin.known, num_repeated=origin is Origin.repeated)
            self._writer.write(result)
            self._count(result)

    def _answers(self, asks: Sequence[Ask]) -> Iterator[tuple[Origin, Ask, Reply]]:
        """Yield what is known already, then decode the rest; the model is loaded only for that."""
        work = self._work
        recording = work.selected.manifest.recording.id
        waiting: dict[AskId, list[Ask]] = {}
        for ask in asks:
            reply = None if work.known is None or work.fresh else work.known.find(ask.id)
            if reply is not None:
                yield Origin.known, ask, reply
            elif work.fresh:
                waiting[AskId(f"{ask.id} {ask.number}")] = [ask]  # each is decoded, equal ones too
            else:
                waiting.setdefault(ask.id, []).append(ask)
        for first, reply in self._replies([same[0] for same in waiting.values()]):
            if work.known is not None and reply.error is None:
                work.known.keep(first.id, reply, recording)
            yield Origin.decoded, first, reply
            for ask in waiting.get(first.id, ())[1:]:
                yield Origin.repeated, ask, reply

    def _replies(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Reply]]:
        work = self._work
        if asks:
            yield from work.answerer.replies(
                work.selected, work.store, asks, work.sampling, work.limits, self._prefilled
            )

    def _count(self, result: Result) -> None:
        self._add(
            num_results=1,
            num_errors=result.error is not None,
            num_parsed=result.parsed is not None,
        )
        self._listener.result(result)

    def _count_tokens(self, usage: Usage) -> None:
        """Count the tokens of a request, once for all of its lines."""
        self._add(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)

    def _prefilled(self, stats: "EngineStats") -> None:
        self._add(num_images=stats.num_images, num_images_again=stats.num_images_again)

    def _add(self, **more: int) -> None:
        """Add to the totals, by their names."""
        sums = {name: getattr(self._totals, name) + int(value) for name, value in more.items()}
        self._totals = dataclasses.replace(self._totals, **sums)

    def _ended(self, info: RunInfo, status: str, started: float) -> RunInfo:
        seconds = info.totals.seconds + time.perf_counter() - started
        totals = dataclasses.replace(self._totals, seconds=seconds)
        return dataclasses.replace(info, ended_at=now(), status=status, totals=totals)


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
    if line := selected.manifest.skipped_line():
        listener.say(line)
    asks = planned(home, selected, options)
    info = run_info(new_run_id(home.runs), selected, options, plan_id(asks), _model_id(home, selected))
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
    here = versions()
    if _model_id(home, selected) != info.model_id:
        why = f"{info.model_path} has other files now"
    elif selected.manifest.encoder.encoder_id.hex != info.encoder_id:
        why = f"{info.recording} is no longer encoded as it was"
    elif here != info.versions:
        other = [name for name in here if here[name] != info.versions.get(name)]
        why = f"it was begun with {', '.join(f'{name} {info.versions.get(name)}' for name in other)}"
    else:
        why = f"the frames of {info.recording}, or the device, are others now"
    raise InputError(
        f"The run {info.id} cannot go on ({why}): begin a new one with seeonce describe; its answers stay."
    )


def _model_id(home: Home, selected: Selected) -> str:
    with PixelIndex(home) as index:
        return model_id(selected.folder, index)
