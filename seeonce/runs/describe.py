"""Pass two from names to results: manifest, plan, every prompt over every frame, a run on disk.

Opens no image and evaluates no vision weight.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.base.errors import InputError, StoreError
from cache.base.home import Home
from cache.base.listener import Listener
from cache.bucket import BucketStore
from cache.layout import now
from cache.leases import entries_in_use
from cache.mirror import with_remote
from cache.prefixes import PrefixStore
from cache.store import Store
from checkpoint.config import Checkpoint
from infer.canary import copies_prefixes
from infer.features import StoredFeatures
from infer.limits import BatchLimits
from infer.request import Answer, Request
from seeonce.runs.answer_cache import AnswerCache
from seeonce.runs.find import select_run
from seeonce.runs.lock import RunLock
from seeonce.runs.options import DescribeOptions, options_of, run_info, versions
from seeonce.runs.plan import Plan, model_identity, plan_run
from seeonce.runs.recording import Selected, select
from seeonce.runs.results import read_results, results_of
from seeonce.runs.run import RequestKey, Result, RunInfo, read_info, request_of
from seeonce.runs.writer import OutputFile, RunWriter, new_run_id

if TYPE_CHECKING:
    from infer.engine import Engine, EngineStats

    OnStats = Callable[[EngineStats], None]
    AnswerElsewhere = Callable[
        [Selected, Sequence[Request], BatchLimits, OnStats], Iterator[tuple[Request, Answer]]
    ]


@dataclass(frozen=True, slots=True)
class DescribeResult:
    """How a run ended, and where it lies. ``was_done`` tells that there was nothing left to ask."""

    info: RunInfo
    path: Path
    interrupted: bool
    was_done: bool = False


class Session:
    """What several runs of one command share: kept answers, the user's file of results, the loaded model."""

    def __init__(
        self,
        home: Home,
        known: AnswerCache | None = None,
        output: OutputFile | None = None,
        prefix_cache: int = 0,
        bucket: BucketStore | None = None,
        answer_elsewhere: "AnswerElsewhere | None" = None,
    ) -> None:
        """Begin with nothing loaded. Without ``known`` nothing is looked up and nothing kept.

        Of what prompts begin with, so many bytes are kept on disk for later runs. With ``bucket``
        recordings are those of there, and the store of ``home`` keeps copies of what was read.
        ``answer_elsewhere`` answers in the place of a model that is loaded here.
        """
        self.home, self.known, self.output, self.prefix_cache = home, known, output, prefix_cache
        self.bucket, self.answer_elsewhere = bucket, answer_elsewhere
        self._engine: Engine | None = None
        self._loaded: tuple[Path, str] | None = None

    def engine(self, selected: Selected, limits: BatchLimits) -> "Engine":
        """Return the engine of a recording's checkpoint; one is held at a time.

        Raises:
            CheckpointError: it does not load.
        """
        wanted = selected.checkpoint.path, selected.manifest.encoder.compute_dtype
        if self._engine is None or self._loaded != wanted:
            self._engine = None  # before the next one comes: two may not fit
            self._engine = load_engine(self.home, selected.checkpoint, wanted[1], limits, self.prefix_cache)
            self._loaded = wanted
        return self._engine


def load_engine(
    home: Home,
    checkpoint: Checkpoint,
    dtype: str,
    limits: BatchLimits,
    prefix_cache: int,
) -> "Engine":
    """Load a language model; its rows read shared prefixes in place or copied, whichever is faster here.

    At most ``prefix_cache`` bytes of what prompts begin with are kept on disk.

    Raises:
        CheckpointError: it does not load.
    """
    from infer.engine import Engine

    engine = Engine.load(checkpoint, dtype)
    if limits.share_prefixes:
        shape = engine.model.attention_shape
        engine.copy_prefixes = copies_prefixes(home, shape, engine.copies_are_faster)
    if prefix_cache:
        engine.keep_prefixes(
            PrefixStore(home, prefix_cache), astuple(model_identity(home, checkpoint, dtype))
        )
    return engine


def describe(
    session: Session,
    selected: Selected,
    options: DescribeOptions,
    listener: Listener,
    plan: Plan | None = None,
) -> DescribeResult:
    """Ask every prompt of every frame of the recording that was selected, and write a run.

    ``plan`` is that of ``options``, where it was made already.

    Raises:
        CheckpointError: the model does not load.
    """
    home = session.home
    if line := selected.manifest.skipped_line():
        listener.say(line)
    plan = plan or plan_run(home, selected, options)
    info = run_info(new_run_id(home.runs), selected, options, plan.id, plan.model_id)
    with RunLock(home.runs / info.id):
        return _Run(session, selected, info, plan, listener).answer({}, plan.requests)


def resume(session: Session, selector: str, listener: Listener) -> DescribeResult:
    """Go on with a run that was stopped, under its own settings: lines that are there are not asked again.

    Its limits were found sound when it began; on another combination of versions and device it is refused.

    Raises:
        InputError: no such run, it goes on in another process, or what it asked would now be answered by
            something else.
        NotEncodedError: the recording is no longer encoded.
        StoreError: the run is of another version.
    """
    home = session.home
    path = home.runs / select_run(home, selector, lambda _: None).info.id
    with RunLock(path):  # before anything is read: nobody adds a line from here on
        info = read_info(path)
        selected = select(
            home, info.recording, info.model_path, listener.say, info.encoder_id, session.bucket
        )
        plan = plan_run(home, selected, options_of(info))
        _check_same(info, selected, plan)
        written = answered(read_results(path, lambda _: None, logprobs=True), plan)
        remaining = [request for request in plan.requests if request.id not in written]
        was_done = not remaining and info.status == "done"
        if was_done and session.output is None:
            return DescribeResult(info, path, interrupted=False, was_done=True)
        done = _Run(session, selected, info, plan, listener).answer(written, remaining)
        return replace(done, was_done=was_done)


def answered(results: Iterable[Result], plan: Plan) -> dict[int, list[Result]]:
    """Return the lines of each request that is answered whole, by its id; an error is no answer."""
    found: dict[RequestKey, dict[int, Result]] = {}
    for line in results:
        if line.error is None:
            found.setdefault(request_of(line), {})[line.frame] = line
    whole = {}
    for request in plan.requests:
        group = tuple(frame.index for frame in request.frames)
        lines = found.get((plan.prompt_of(request).prompt_id, group), {})
        if lines.keys() == set(group):
            whole[request.id] = [lines[index] for index in group]
    return whole


class _Run:
    """One run, whose lock is held: requests in, lines out."""

    def __init__(
        self,
        session: Session,
        selected: Selected,
        info: RunInfo,
        plan: Plan,
        listener: Listener,
    ) -> None:
        self._session, self._selected, self._plan = session, selected, plan
        self._info = replace(info, status="running", ended_at=None)
        self._listener, self._num_all = listener, 0
        # What was known, repeated and prefilled before a run went on still counts; what its lines say is
        # counted again.
        self._before = info.totals
        self._totals = replace(
            info.totals, num_results=0, num_errors=0, num_parsed=0, prompt_tokens=0, completion_tokens=0
        )

    def answer(self, written: dict[int, list[Result]], remaining: Sequence[Request]) -> DescribeResult:
        """Answer the remaining requests, beside the lines that are written, and say how the run ended."""
        started, path = time.perf_counter(), self._session.home.runs / self._info.id
        bucket = self._session.bucket
        store = Store.open(self._session.home, create=bucket is not None)
        store = with_remote(store, address="" if bucket is None else bucket.objects.address)
        in_use = entries_in_use(store, "describe", self._selected.manifest)
        kept = [((number, index), line) for number in written for index, line in enumerate(written[number])]
        with in_use, RunWriter(path, self._info, self._session.output, kept) as writer:
            self._num_all = len(kept) + sum(len(request.frames) for request in remaining)
            self._show()
            for lines in written.values():
                self._count(lines)
            try:
                self._answer(store, writer, remaining)
                writer.put_in_order()
                status = "done"
            except KeyboardInterrupt:
                status = "interrupted"
            except BaseException:
                with suppress(StoreError):  # the disk that failed may be the run's own
                    writer.write_info(self._ended("failed", started))
                raise
            info = self._ended(status, started)
            writer.write_info(info)
        return DescribeResult(info, path, interrupted=status == "interrupted")

    def _answer(self, store: Store, writer: RunWriter, remaining: Sequence[Request]) -> None:
        """Take what is known already, then decode the rest; the model is loaded only for that."""
        known, fresh = self._session.known, self._info.fresh
        waiting: dict[str, list[Request]] = {}
        for request in remaining:
            digest = self._plan.digests[request.id]
            answer = None if known is None or fresh else known.find(digest)
            if answer is not None:
                self._write(writer, request, answer, num_known=len(request.frames))
            elif fresh:
                waiting[f"{digest} {request.id}"] = [request]  # each is decoded, equal ones too
            else:
                waiting.setdefault(digest, []).append(request)
        if not waiting:
            return
        recording = self._selected.manifest.recording.id
        repeats = {first.id: others for first, *others in waiting.values()}
        for request, answer in self._decoded(store, [same[0] for same in waiting.values()]):
            if known is not None:
                known.keep(self._plan.digests[request.id], answer, recording)
            self._write(writer, request, answer)
            for other in repeats[request.id]:
                self._write(writer, other, answer, num_repeated=len(other.frames))

    def _decoded(self, store: Store, requests: list[Request]) -> Iterator[tuple[Request, Answer]]:
        session, limits = self._session, self._info.limits
        if session.answer_elsewhere is not None:
            return session.answer_elsewhere(self._selected, requests, limits, self._prefilled)
        engine = session.engine(self._selected, limits)
        source = StoredFeatures(store, self._selected.manifest.recording.id)
        return engine.answer(requests, source, limits, report=self._prefilled)

    def _write(self, writer: RunWriter, request: Request, answer: Answer, **counted: int) -> None:
        """Write an answer as lines, one a frame, and count it."""
        self._add(**counted)
        lines = results_of(
            request, self._plan.prompt_of(request), answer, self._selected.manifest.recording.id
        )
        for number, line in enumerate(lines):
            writer.write(line, (request.id, number))
        self._count(lines)

    def _count(self, lines: Sequence[Result]) -> None:
        """Count the lines of one request, and its tokens once."""
        usage = lines[0].usage
        self._add(
            num_results=len(lines),
            num_errors=sum(line.error is not None for line in lines),
            num_parsed=sum(line.parsed is not None for line in lines),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
        self._show()

    def _show(self) -> None:
        self._listener.show("describe", "answer", self._totals.num_results, self._num_all)

    def _prefilled(self, stats: "EngineStats") -> None:
        self._add(
            num_images=stats.num_images,
            num_images_again=stats.num_images_again,
            num_images_read=stats.num_images_read,
            prefix_seconds=stats.prefix_seconds,
            prefix_bytes=stats.prefix_bytes,
        )
        for line in stats.notes:
            self._listener.say(line)

    def _add(self, **more: float) -> None:
        """Add to the totals, by their names."""
        sums = {name: getattr(self._totals, name) + value for name, value in more.items()}
        self._totals = replace(self._totals, **sums)

    def _ended(self, status: str, started: float) -> RunInfo:
        seconds = self._before.seconds + time.perf_counter() - started
        return replace(
            self._info, ended_at=now(), status=status, totals=replace(self._totals, seconds=seconds)
        )


def _check_same(info: RunInfo, selected: Selected, plan: Plan) -> None:
    """Raise ``InputError`` when the answers to come would be others than those of a whole run."""
    if plan.id == info.plan_id:
        return
    here = versions()
    if plan.model_id != info.model_id:
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
