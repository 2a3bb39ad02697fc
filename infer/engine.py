"""Pass two: requests in, answers out as they finish, never more in flight than allowed.

Features are read when a request is about to be prefilled, so memory does not grow with the number of
frames.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Self

from cache.base.errors import SeeonceError
from cache.manifest import FrameEntry
from cache.prefixes import PrefixStore
from checkpoint.config import Checkpoint
from infer.decoding import DecodeBatch
from infer.features import FeatureSource, ReadAhead, StoredFeatures
from infer.hooks import LogitsProcessor, RowHooks, TokenWatch
from infer.kv_memory import InFlight, KVMemory, default_kv_bytes
from infer.limits import BatchLimits
from infer.model import LanguageModel, PromptInputs
from infer.prefill import Prefill
from infer.prefix_cache import PrefixCache
from infer.prefix_trial import copies_are_faster
from infer.prefixes import Keys, PrefixPool
from infer.request import Answer, Request, Usage, failed, split_reasoning
from infer.sampling import RepetitionPenalty, RepetitionWatch, SeededDraw, StopStringWatch, before_stop
from infer.scheduler import READ_AHEAD, Schedule
from infer.schema import Guide
from infer.sequence import HooksOf, Sequence
from infer.tokenizer import ChatTokenizer

_NUM_TIMED = 8  # prefills of images that are waited for, to know what prefill takes


@dataclass(slots=True)
class EngineStats:
    """What was prefilled and shared, and the most that was held at once; counted while the engine runs.

    ``num_images`` counts images that went through the decoder. ``num_images_again`` of these had gone
    before in this run, in the same list of frames: each costs what sharing was to save. ``num_images_read``
    did not, for their keys and values were read from disk.

    ``num_prefix_tokens`` are the prefilled tokens up to each prompt's last image, which a prefix cache spares
    later prompts; it takes ``prefix_bytes`` for them. ``notes`` are for the user, a line each.
    """

    num_requests: int = 0
    num_prefilled_tokens: int = 0
    num_shared_tokens: int = 0
    num_images: int = 0
    num_image_tokens: int = 0
    num_images_again: int = 0
    num_images_read: int = 0
    num_prefix_tokens: int = 0
    prefix_bytes: int = 0
    max_in_flight: int = 0
    max_prefix_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    _token_s: float = 0.0
    _num_timed: int = 0
    _seen: set[Keys] = field(default_factory=set, repr=False, compare=False)

    def prefilled(self, sequence: Sequence, prefix_bytes: Callable[[int], int]) -> None:
        """Count a prompt whose tokens after the shared ones go through the decoder."""
        prompt, num_shared = sequence.prompt, sequence.num_shared
        self.num_requests += 1
        self.num_prefilled_tokens += len(prompt.ids) - num_shared
        self.num_shared_tokens += num_shared
        for number, span in enumerate(prompt.images, 1):
            end = span.start + span.num_tokens
            if end > num_shared:
                frames = sequence.keys[:number]
                self.num_images += 1
                self.num_image_tokens += end - max(span.start, num_shared)
                self.num_images_again += frames in self._seen
                if number == len(prompt.images) and frames not in self._seen:
                    self.num_prefix_tokens += end
                    self.prefix_bytes += prefix_bytes(end)
                self._seen.add(frames)

    @property
    def prefix_seconds(self) -> float:
        """What prefilling ``num_prefix_tokens`` took, from the best of the prefills that were timed."""
        return self.seconds_of(self.num_prefix_tokens)

    def seconds_of(self, num_tokens: int) -> float:
        """Return what it takes to prefill so many tokens, as far as that is known."""
        return num_tokens * self._token_s

    @property
    def wants_timing(self) -> bool:
        """Whether another prefill should be timed."""
        return self._num_timed < _NUM_TIMED

    def timed(self, num_tokens: int, seconds: float) -> None:
        """Note what a prefill took; the first is slower, for kernels are compiled in it."""
        self._token_s = min(seconds / num_tokens, self._token_s or seconds / num_tokens)
        self._num_timed += 1

    def held(self, num_in_flight: int, prefix_bytes: int) -> None:
        """Note how many sequences decode and how much is kept."""
        self.max_in_flight = max(num_in_flight, self.max_in_flight)
        self.max_prefix_bytes = max(prefix_bytes, self.max_prefix_bytes)


class Engine:
    """A checkpoint's language model and tokenizer, ready to answer questions about stored frames."""

    def __init__(self, model: LanguageModel, tokenizer: ChatTokenizer) -> None:
        """Answer with what is loaded."""
        self.model, self.tokenizer = model, tokenizer
        self.prefix_cache: PrefixCache | None = None
        self.copy_prefixes = False  # rows read a shared prefix in place, unless that is slower here

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: str) -> Self:
        """Load the language weights in ``dtype``, the type in which the frames were encoded.

        Raises:
            CheckpointError: the checkpoint does not load.
        """
        tokenizer = ChatTokenizer(checkpoint)  # first: it tells at once what is missing
        return cls(LanguageModel(checkpoint, dtype), tokenizer)

    def keep_prefixes(self, store: PrefixStore, computed_by: tuple[str, ...]) -> None:
        """Start from the prefixes in ``store``, and keep there what is prefilled, from the next answer on.

        ``computed_by`` is all on which they depend beside tokens and frames: the digest of the weights, the
        compute type, versions, the device.
        """
        self.prefix_cache = PrefixCache(store, self.model, computed_by)

    def answer(
        self,
        requests: Iterable[Request | None],
        source: FeatureSource,
        limits: BatchLimits,
        *,
        hooks_of: HooksOf | None = None,
        stop_ids: frozenset[int] | None = None,
        report: Callable[[EngineStats], None] | None = None,
        prefixes: PrefixPool | None = None,
    ) -> Iterator[tuple[Request, Answer]]:
        """Answer ``requests``, yielding each as it finishes; which order that is depends on their lengths.

        A request that fails, before its prefill or while it is decoded, gets an answer that says why, and
        the others go on: nothing of theirs depends on it. ``requests`` is asked between two steps; ``None``
        says that nothing more has come yet, and the rows that decode need not wait for it. ``report`` is told
        once, at the end, what was done, also when the caller ends the run early. ``hooks_of`` is for those
        who watch or force tokens, by default ``hooks``; ``stop_ids`` end an answer, by default the
        tokenizer's. ``prefixes`` are kept from call to call.
        """
        # Others may compute features, which only the thread of the model may do.
        reads_only = isinstance(source, StoredFeatures)
        ahead = ReadAhead(source, limits.prefill_batch_size + READ_AHEAD) if reads_only else None
        stop = self.tokenizer.stop_ids if stop_ids is None else stop_ids
        on_disk = self.prefix_cache if limits.share_prefixes else None
        loop = _Loop(self, ahead or source, stop, limits, hooks_of or self.hooks, on_disk, prefixes)
        try:
            with self.model.wired(), ahead or nullcontext(), on_disk or nullcontext():
                yield from loop.run(iter(requests))
        finally:
            if on_disk is not None:
                loop.stats.notes += on_disk.take_notes()
            if report is not None:
                report(loop.stats)

    def copies_are_faster(self) -> bool:
        """Time whether rows decode faster over a copy of a prefix each than over one together."""
        with self.model.stream():
            return copies_are_faster(self.model.model)

    def hooks(self, sequence: Sequence) -> RowHooks:
        """Return what a request's sampling brings into the batch: a schema, a draw, stop strings."""
        request, sampling = sequence.request, sequence.request.sampling
        processors: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenalty(sampling))
        if sampling.schema is not None:  # after the penalty, which it has the last word over; before the draw
            num_frames = len(request.frames)
            processors.append(self._guide.processor(sampling.schema, num_frames, numbered=request.numbered))
        if sampling.temperature > 0:
            processors.append(SeededDraw(sampling, sequence.keys, sequence.prompt.ids))
        watches: tuple[TokenWatch, ...] = (RepetitionWatch(),)
        if sampling.stop:
            watches = (StopStringWatch(sampling.stop, self.tokenizer.decode), *watches)
        return RowHooks(tuple(processors), watches, sampling.logprobs)

    @cached_property
    def _guide(self) -> Guide:
        """The tokenizer as a schema needs it, which takes about a second."""
        return Guide(self.tokenizer.backend, self.tokenizer.stop_ids)

    def memory(self, limits: BatchLimits) -> KVMemory:
        """Return the bound on what KV caches take under ``limits``."""
        max_bytes = limits.kv_memory_bytes or default_kv_bytes(self.model.weight_bytes)
        max_context = self.model.checkpoint.text.max_context
        return KVMemory(max_bytes, self.model.kv_token_bytes, max_context, self.model.row_bytes)

    def answer_of(self, sequence: Sequence, finish_reason: str) -> Answer:
        """Return the answer of a sequence that has ended, without stop string, its reasoning apart."""
        sampling, tokens = sequence.request.sampling, tuple(sequence.tokens)
        whole = self.tokenizer.decode(tokens)
        kept: str | None = before_stop(whole, sampling.stop)
        reasoning = ""
        if kept != whole:
            finish_reason = "stop"
        if sequence.request.chat and sampling.schema is None and kept is not None:  # else it cannot reason
            opened = self.tokenizer.opens_think(sequence.request.thinking)
            reasoning, kept = split_reasoning(kept, opened=opened)
        error = None
        if kept is None:
            error = (
                f"The answer is reasoning alone: its thinking did not close before it ended by "
                f"{finish_reason} after {len(tokens)} tokens. Give more --max-tokens, or "
                + ("leave out --thinking." if sequence.request.thinking else "a template without thinking.")
            )
        processor = sequence.processor
        logprobs = None if processor is None else processor.logprobs(len(tokens), self.tokenizer.decode)
        usage = Usage(len(sequence.prompt.ids), len(tokens))
        return Answer(kept or "", finish_reason, usage, logprobs, error, tokens, reasoning)


class _Loop:
    """One run of an engine: each turn decodes a token of every row and prefills a chunk of others."""

    def __init__(
        self,
        engine: Engine,
        source: FeatureSource,
        stop_ids: frozenset[int],
        limits: BatchLimits,
        hooks_of: HooksOf,
        on_disk: PrefixCache | None,
        prefixes: PrefixPool | None,
    ) -> None:
        self.stats = EngineStats()
        model = engine.model
        self._engine, self._model, self._source = engine, model, source
        self._limits, self._hooks_of, self._on_disk, self._prefixes = limits, hooks_of, on_disk, prefixes
        self._memory = engine.memory(limits)
        self._decoding, self._stop_ids = DecodeBatch(model.model), stop_ids
        self._running: set[Sequence] = set()
        self._prefill: Prefill | None = None
        self._answers: list[tuple[Request, Answer]] = []  # found between two turns
        self._was_step_alone = False

    def run(self, requests: Iterator[Request | None]) -> Iterator[tuple[Request, Answer]]:
        schedule = Schedule(
            self._arriving(requests),
            self._limits,
            self._memory,
            self._on_disk,
            self._prefixes,
            copy_prefixes=self._engine.copy_prefixes,
        )
        while self._running or schedule.draw() or self._answers:
            # The caller's own work, between two answers, must not run in the stream of the engine.
            with self._model.stream():
                self._turn(schedule)
            yield from self._answers
            self._answers.clear()

    def _arriving(self, requests: Iterator[Request | None]) -> Iterator[Sequence | None]:
        """Tokenise requests, and let through those that can be answered at all."""
        for request in requests:
            if request is None:
                yield None
                continue
            sequence = Sequence(request, self._engine.tokenizer.prompt(request))
            if self._on_disk is not None:
                sequence.prefix_name = self._on_disk.name(sequence)
            problem = self._memory.problem(sequence)
            if problem is None:
                yield sequence
            else:
                self._fail(sequence, problem)

    def _fail(self, sequence: Sequence, problem: str) -> None:
        self._answers.append((sequence.request, failed(problem, len(sequence.prompt.ids))))

    def _turn(self, schedule: Schedule) -> None:
        started, num_rows = time.perf_counter(), len(self._decoding)
        if num_rows:
            decoded = self._decoding.step()
            self._decoding.remove([sequence for sequence, token in decoded if self._ends(sequence, token)])
        schedule.draw()  # also while none can begin: a server refuses and encodes meanwhile
        if self._prefill is None:
            self._admit(schedule)
        if self._prefill is None:
            if self._was_step_alone:
                schedule.in_flight.stepped(num_rows, time.perf_counter() - started)
            self._was_step_alone = True
            return
        self._was_step_alone = False  # the next one waits for this prefill
        self._prefill.step()
        if self._prefill.is_done:
            self._join(schedule, self._prefill)
            self._prefill = None

    def _ends(self, sequence: Sequence, token: int) -> bool:
        """Take a token; tell whether its sequence ends with it."""
        try:
            why = sequence.take(token, self._stop_ids)
            if why is None:
                return False
            self._answers.append((sequence.request, self._engine.answer_of(sequence, why)))
        except SeeonceError as error:
            self._fail(sequence, str(error))
        self._running.remove(sequence)
        return True

    def _admit(self, schedule: Schedule) -> None:
        """Begin to prefill what the schedule gives, less those that fail."""
        to_come = max((sequence.num_to_come for sequence in self._running), default=0)
        decoding = self._decoding
        now = InFlight(len(decoding), decoding.longest_row, to_come, decoding.num_slots, decoding.prefixes)
        batch = schedule.next_batch(now)
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
                self._fail(sequence, str(error))
        self._expect((), schedule)
        if sequences:
            is_timed = self.stats.wants_timing and any(each.images for each in inputs)
            chunk = self._limits.prefill_step_size
            self._prefill = Prefill(self._model.model, sequences, inputs, chunk, is_timed=is_timed)

    def _expect(self, now: Iterable[FrameEntry], schedule: Schedule) -> None:
        """Have the frames read that are needed now, then those of the prefills after it."""
        if isinstance(self._source, ReadAhead):
            self._source.expect(chain(now, schedule.next_frames))

    def _begin(self, sequence: Sequence) -> PromptInputs:
        """Give a sequence what it brings along, and return what the decoder takes of its prompt."""
        frames = sequence.request.frames
        _, max_tokens = self._memory.size(sequence)
        hooks = self._hooks_of(sequence)
        inputs = self._model.inputs(
            sequence.prompt,
            lambda number: self._source.features(frames[number]),
            sequence.num_shared,
        )
        sequence.begin(max_tokens, hooks)
        if self._on_disk is not None:
            sequence.num_on_disk = self._on_disk.num_to_keep(sequence)
        self._running.add(sequence)
        self.stats.prefilled(sequence, self._memory.prefix_bytes)
        return inputs

    def _join(self, schedule: Schedule, prefill: Prefill) -> None:
        """Keep what others share of the prefilled rows, now or in a later run, and let these decode."""
        if prefill.is_timed:
            self.stats.timed(prefill.num_tokens, prefill.seconds)
        for index, sequence in enumerate(prefill.sequences):
            if self._on_disk is not None and (num_tokens := sequence.num_on_disk):
                rows, seconds = prefill.kept[index, num_tokens], self.stats.seconds_of(num_tokens)
                self._on_disk.keep(sequence, rows, seconds)
            schedule.keep(sequence, prefill.kept.get((index, sequence.num_kept)))
        self._decoding.join(prefill)
        self.stats.held(len(self._decoding), schedule.prefixes.num_bytes)
        self.stats.num_images_read = schedule.num_images_read
