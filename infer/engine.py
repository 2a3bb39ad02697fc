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
from infer.kv_cache import Keys, SharedPrefix
from infer.kv_memory import InFlight, KVMemory, default_kv_bytes
from infer.limits import BatchLimits
from infer.model import DecodeBatch, LanguageHalf, PromptInputs
from infer.prefill import Prefill
from infer.scheduler import Schedule
from infer.sequence import Answer, FeatureSource, HooksOf, Request, Sequence, sampling_hooks
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
        self._running: dict[int, Sequence] = {}
        self._prefill: Prefill | None = None
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
            decoded = self._decoding.step()
            self._decoding.remove({uid for uid, token, why in decoded if self._ends_early(uid, token, why)})
        if self._prefill is None:
            self._admit(schedule)
        if self._prefill is not None:
            self._prefill.step()
            if self._prefill.is_done:
                self._join(schedule, self._prefill)
                self._prefill = None

    def _ends_early(self, uid: int, token: int, finish_reason: str | None) -> bool:
        """Take a token; tell whether its row ends with it and is still in the batch."""
        answer = self._running[uid].take(token, finish_reason)
        if answer is None:
            return False
        del self._running[uid]
        self._answers.append(answer)
        return finish_reason is None

    def _admit(self, schedule: Schedule) -> None:
        """Begin to prefill what the schedule gives, less those that fail."""
        to_come = max((sequence.num_to_come for sequence in self._running.values()), default=0)
        batch = schedule.next_batch(InFlight(len(self._decoding), self._decoding.num_columns, to_come))
        if not batch:
            return
        own = [frame for sequence in batch if sequence.prefix is None for frame in sequence.request.frames]
        self._expect(own, schedule)
        sequences, inputs = [], []
        for sequence in batch:
            try:
                inputs.append(self._begin(sequence))
                sequences.append(sequence)
            except SeeonceError as error:
                self._answers.append(sequence.failed(str(error)))
        self._expect((), schedule)
        if sequences:
            self._prefill = Prefill(self._half.model, sequences, inputs, self._limits.prefill_step_size)

    def _expect(self, now: Iterable[FrameEntry], schedule: Schedule) -> None:
        """Have the frames read that are needed now, then those of the prefills after it."""
        if isinstance(self._source, ReadAhead):
            self._source.expect(chain(now, schedule.next_frames))

    def _begin(self, sequence: Sequence) -> PromptInputs:
        """Give a sequence what it brings along, and return what the decoder takes of its prompt."""
        request = sequence.request
        _, max_tokens = self._memory.size(request)
        hooks = self._hooks_of(request)
        inputs = self._half.inputs(
            request.prompt,
            lambda number: self._source.features(request.frames[number]),
            sequence.num_shared,
        )
        self._num_uids += 1
        sequence.begin(self._num_uids, max_tokens, hooks)
        self._running[sequence.uid] = sequence
        self.tally.prefilled(request.keys, request.prompt, sequence.num_shared)
        return inputs

    def _join(self, schedule: Schedule, prefill: Prefill) -> None:
        """Keep what others share of the prefilled rows, and let these decode."""
        for index, sequence in enumerate(prefill.sequences):
            if sequence.num_kept:
                kept = prefill.row_kv(index, sequence.num_kept)
                num_bytes = self._memory.prefix_bytes(sequence.num_kept)
                prefix = SharedPrefix(sequence.request.prompt, kept, num_bytes)
                schedule.prefixes.put(sequence.request.keys, prefix)
            sequence.prefix = None  # its row has a copy
        self._decoding.join(prefill.sequences, prefill.rope_deltas, prefill.logits, prefill.cache)
        self.tally.held(len(self._decoding), schedule.prefixes.num_bytes)
