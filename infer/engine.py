"""The loop of pass two: requests in, answers out as they finish, never more in flight than allowed.

Features are read when a request is about to be prefilled, so memory does not grow with the number of
frames.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain

from cache.base.errors import SeeonceError
from cache.manifest import FrameEntry
from infer.features import ReadAhead, StoredFeatures
from infer.hooks import RowHooks, RowProcessor, TokenLogprobs
from infer.kv_cache import Keys, SharedPrefix
from infer.kv_memory import InFlight, KVMemory, default_kv_bytes
from infer.limits import BatchLimits
from infer.model import DecodeBatch, LanguageHalf, Token
from infer.prefill import Prefill, PrefillRow
from infer.sampling import SeededDraw
from infer.scheduler import Planned, Schedule
from infer.sequence import FeatureSource, Request
from infer.tokenizer import PromptTokens


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What was prefilled and shared, and the most that was held at once.

    ``num_images`` counts images that went through the decoder. ``num_images_again`` of these had gone
    before in this run, in the same list of frames: each costs what sharing was to save.
    """

    num_requests: int = 0
    num_prefilled_tokens: int = 0
    num_shared_tokens: int = 0
    num_images: int = 0
    num_image_tokens: int = 0
    num_images_again: int = 0
    max_in_flight: int = 0
    max_prefix_bytes: int = 0


class Tally:
    """Counts while the engine runs."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.stats = EngineStats()
        self._seen: set[Keys] = set()

    def prefilled(self, keys: Keys, prompt: PromptTokens, num_shared: int) -> None:
        """Count a prompt whose tokens from ``num_shared`` on go through the decoder."""
        shown = [
            (keys[: number + 1], span.start + span.num_tokens - max(span.start, num_shared))
            for number, span in enumerate(prompt.images)
            if span.start + span.num_tokens > num_shared
        ]
        stats = self.stats
        self.stats = replace(
            stats,
            num_requests=stats.num_requests + 1,
            num_prefilled_tokens=stats.num_prefilled_tokens + len(prompt.ids) - num_shared,
            num_shared_tokens=stats.num_shared_tokens + num_shared,
            num_images=stats.num_images + len(shown),
            num_image_tokens=stats.num_image_tokens + sum(count for _, count in shown),
            num_images_again=stats.num_images_again + sum(frames in self._seen for frames, _ in shown),
        )
        self._seen.update(frames for frames, _ in shown)

    def held(self, num_in_flight: int, prefix_bytes: int) -> None:
        """Note how many sequences decode and how much is kept."""
        if num_in_flight > self.stats.max_in_flight or prefix_bytes > self.stats.max_prefix_bytes:
            self.stats = replace(
                self.stats,
                max_in_flight=max(num_in_flight, self.stats.max_in_flight),
                max_prefix_bytes=max(prefix_bytes, self.stats.max_prefix_bytes),
            )


_READ_AHEAD = 2  # frames beyond those of the next prefill


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of one request, the stop token left out; or the error that kept it from an answer.

    ``finish_reason`` is "stop", "length", "error", or the word with which the request's watch ended it.
    ``logprobs`` are those of ``tokens``, when they were asked for.
    """

    request: Request
    tokens: tuple[int, ...]
    finish_reason: str
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


HooksOf = Callable[[Request], RowHooks]
"""What a request brings along; an error that it raises becomes the answer of its request."""


def sampling_hooks(request: Request) -> RowHooks:
    """Return what draws a request's tokens; nothing for greedy decoding."""
    if request.sampling.temperature == 0:
        return RowHooks()
    return RowHooks((SeededDraw(request.sampling, request.keys, request.prompt.ids),))


def answer_all(
    requests: Iterable[Request],
    half: LanguageHalf,
    source: FeatureSource,
    stop_ids: frozenset[int],
    limits: BatchLimits,
    hooks_of: HooksOf = sampling_hooks,
    report: Callable[[EngineStats], None] | None = None,
) -> Iterator[Answer]:
    """Answer ``requests``, yielding each as it finishes; which order that is depends on their lengths.

    A request that fails, before its prefill or while it is decoded, becomes an answer that says why, and
    the others go on: nothing of theirs depends on it. ``report`` is told once, at the end, what was done,
    also when the caller ends the run early.
    """
    # Others may compute features, which only the thread of the model may do.
    reads_only = isinstance(source, StoredFeatures)
    ahead = ReadAhead(source, limits.prefill_batch_size + _READ_AHEAD) if reads_only else None
    loop = _Loop(half, ahead or source, stop_ids, limits, hooks_of)
    with half.wired(), ahead or nullcontext():
        try:
            yield from loop.run(iter(requests))
        finally:
            if report is not None:
                report(loop.tally.stats)


class _Running:
    """One request in the batch: what it brought along, and its tokens so far."""

    def __init__(self, request: Request, hooks: RowHooks, max_tokens: int) -> None:
        self.request = request
        self.num_to_come = max_tokens
        self.processor = RowProcessor(hooks) if hooks.touches_logits else None
        self._watch = hooks.watch
        self._tokens: list[int] = []

    def take(self, token: Token) -> Answer | None:
        """Take the next token; return the answer when it ends here."""
        finish_reason = token.finish_reason
        self.num_to_come -= 1
        if finish_reason != "stop":
            self._tokens.append(token.token)
            if self.processor is not None:
                self.processor.taken(token.token)
            try:
                finish_reason = (self._watch and self._watch.seen(token.token)) or finish_reason
            except SeeonceError as error:
                return self.failed(str(error))
        if finish_reason is None:
            # The next token is decoded already: an error on the way to it ends the request here.
            problem = self.processor and self.processor.error
            return self.failed(problem) if problem else None
        logprobs = self.processor.logprobs(len(self._tokens)) if self.processor is not None else ()
        return Answer(self.request, tuple(self._tokens), finish_reason, logprobs=logprobs)

    def failed(self, problem: str) -> Answer:
        """Return what this request becomes when it cannot go on."""
        return Answer(self.request, (), "error", problem)


class _Loop:
    """One run of ``answer_all``: each turn decodes a token of every row and prefills a chunk of others."""

    def __init__(
        self,
        half: LanguageHalf,
        source: FeatureSource,
        stop_ids: frozenset[int],
        limits: BatchLimits,
        hooks_of: HooksOf,
    ) -> None:
        self.tally = Tally()
        self._half, self._source, self._limits, self._hooks_of = half, source, limits, hooks_of
        max_bytes = limits.kv_memory_bytes or default_kv_bytes(half.weight_bytes)
        self._memory = KVMemory(max_bytes, half.kv_token_bytes, half.config.text.max_context)
        self._decoding = DecodeBatch(half.model, stop_ids)
        self._running: dict[int, _Running] = {}
        self._prefill: Prefill | None = None
        self._planned: list[Planned] = []
        self._answers: list[Answer] = []  # found between two turns
        self._num_uids = 0

    def run(self, requests: Iterator[Request]) -> Iterator[Answer]:
        schedule = Schedule(self._possible(requests), self._limits, self._memory)
        while self._running or schedule.upcoming or self._answers:
            # The caller's own work, between two answers, must not run in the stream of the engine.
            with self._half.stream():
                self._turn(schedule)
            yield from self._answers
            self._answers.clear()

    def _possible(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Let through the requests that can be answered at all."""
        for request in requests:
            problem = self._memory.problem(request)
            if problem is None:
                yield request
            else:
                self._answers.append(Answer(request, (), "error", problem))

    def _turn(self, schedule: Schedule) -> None:
        if len(self._decoding):
            self._decoding.remove({token.uid for token in self._decoding.step() if self._ends_early(token)})
        if self._prefill is None:
            self._admit(schedule)
        if self._prefill is not None:
            self._prefill.step()
            if self._prefill.is_done:
                self._join(schedule, self._prefill)
                self._prefill = None

    def _ends_early(self, token: Token) -> bool:
        """Take a token; tell whether its row ends with it and is still in the batch."""
        answer = self._running[token.uid].take(token)
        if answer is None:
            return False
        del self._running[token.uid]
        self._answers.append(answer)
        return token.finish_reason is None

    def _admit(self, schedule: Schedule) -> None:
        """Begin to prefill what the schedule gives, less those that fail."""
        to_come = max((running.num_to_come for running in self._running.values()), default=0)
        now = InFlight(len(self._decoding), self._decoding.num_columns, to_come)
        rows, self._planned = [], []
        batch = schedule.next_batch(now)
        if not batch:
            return
        own = [frame for planned in batch if planned.prefix is None for frame in planned.request.frames]
        self._expect(own, schedule)
        for planned in batch:
            try:
                rows.append(self._row(planned))
                self._planned.append(planned)
            except SeeonceError as error:
                self._answers.append(Answer(planned.request, (), "error", str(error)))
        self._expect([], schedule)
        if rows:
            self._prefill = Prefill(self._half.model, rows, self._limits.prefill_step_size)

    def _expect(self, now: list[FrameEntry], schedule: Schedule) -> None:
        """Have the frames read that are needed now, then those of the prefills after it."""
        if isinstance(self._source, ReadAhead):
            self._source.expect(chain(now, schedule.next_frames))

    def _row(self, planned: Planned) -> PrefillRow:
        request = planned.request
        _, max_tokens = self._memory.size(request)
        running = _Running(request, self._hooks_of(request), max_tokens)
        inputs = self._half.inputs(
            request.prompt,
            lambda number: self._source.features(request.frames[number]),
            planned.num_shared,
        )
        uid = self._num_uids = self._num_uids + 1
        self._running[uid] = running
        self.tally.prefilled(request.keys, request.prompt, planned.num_shared)
        return PrefillRow(uid, inputs, max_tokens, running.processor, planned.prefix, planned.num_shared)

    def _join(self, schedule: Schedule, prefill: Prefill) -> None:
        """Keep what others share of the prefilled rows, and let these decode."""
        for index, planned in enumerate(self._planned):
            if planned.num_kept:
                kept = prefill.row_kv(index, planned.num_kept)
                num_bytes = self._memory.prefix_bytes(planned.num_kept)
                prefix = SharedPrefix(planned.request.prompt, kept, num_bytes)
                schedule.prefixes.put(planned.request.keys, prefix)
        self._planned = []
        self._decoding.join(prefill.new_rows, prefill.logits, prefill.cache)
        self.tally.held(len(self._decoding), schedule.prefixes.num_bytes)
