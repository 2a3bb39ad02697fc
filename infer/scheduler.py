"""Which sequences are prefilled next, so that followers find their leader's prefix.

Looks a bounded number of sequences ahead. Of those over the same frames one, the leader, is
prefilled first, and the beginning that it shares with the others is kept; they follow at once, ahead of
other frames. A batch is either leaders or followers: beside a whole picture, a question of twenty tokens
would be padded to its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from statistics import median

from cache.manifest import FrameEntry
from infer.kv_cache import LayerRow
from infer.kv_memory import InFlight, KVMemory
from infer.limits import BatchLimits
from infer.prefix_cache import PrefixCache
from infer.prefixes import Keys, PrefixPool, SharedPrefix, end_of_images, most_saved, num_common
from infer.sequence import Sequence

LOOK_AHEAD = 64
READ_AHEAD = 2  # frames, or prefixes, beyond those of the next prefill
_FEWEST, _MOST = 8, 256  # in flight, where nobody says how many
_NUM_STEPS = 6  # of which the median says how fast so many are
_LEAST_GAIN = 1.05  # in tokens a second, for twice as many


@dataclass(slots=True)
class _Batch:
    """What has been chosen so far for one prefill."""

    now: InFlight
    sequences: list[Sequence] = field(default_factory=list)
    leading: set[Keys] = field(default_factory=set)
    num_claimed: int = 0  # rows, with the followers that leaders bring along

    @property
    def is_idle(self) -> bool:
        return not self.now.num_rows and not self.sequences

    def add(self, sequence: Sequence, num_followers: int = 0) -> None:
        self.sequences.append(sequence)
        self.num_claimed += 1 + num_followers
        if sequence.num_kept:
            self.leading.add(sequence.keys)


class InFlightLimit:
    """How many sequences may decode at once: a fixed number, or doubled as long as more are faster.

    Only steps that are full and that no prefill delays say anything; memory may keep them from being full.
    """

    def __init__(self, fixed: int | None) -> None:
        """Begin with ``fixed``, which then stays, or with eight."""
        self.num = fixed or _FEWEST
        self._settled = fixed is not None
        self._tokens_per_s = 0.0
        self._seconds: list[float] = []

    def stepped(self, num_rows: int, seconds: float) -> None:
        """Take note of what a step of so many rows took."""
        if self._settled or num_rows < self.num:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < _NUM_STEPS:
            return
        found, before = num_rows / median(self._seconds), self._tokens_per_s
        self._seconds.clear()
        self._settled = found < before * _LEAST_GAIN or self.num >= _MOST
        if found > before * _LEAST_GAIN:
            self._tokens_per_s = found
            self.num = min(2 * self.num, _MOST)
        elif found < before:
            self.num //= 2


class Schedule:
    """The waiting sequences, and the prefixes kept for them."""

    def __init__(
        self,
        arriving: Iterator[Sequence | None],
        limits: BatchLimits,
        memory: KVMemory,
        on_disk: PrefixCache | None = None,
        prefixes: PrefixPool | None = None,
        *,
        copy_prefixes: bool = False,
    ) -> None:
        """Plan for ``arriving``, each of which fits into ``memory`` alone; they are drawn as needed.

        ``None`` among them says that nothing more has come yet. Those that have a prefix ``on_disk`` start
        from it; ``prefixes`` may hold some of before. With ``copy_prefixes`` each row gets a copy of its
        prefix, instead of all reading one, as has one that decodes alone.
        """
        self._arriving, self._limits, self._memory = arriving, limits, memory
        self._on_disk = on_disk
        self._waiting: list[Sequence] = []
        self._leading: set[Keys] = set()
        self._refused_at: tuple[int, int] | None = None
        self._num_before_first = 0  # handed out before the sequence that waits longest
        self.num_images_read = 0
        self.in_flight = InFlightLimit(limits.max_num_seqs)
        self._reads_in_place = not copy_prefixes and limits.max_num_seqs != 1
        self.prefixes = prefixes or PrefixPool(memory.max_bytes if limits.share_prefixes else 0)

    def draw(self) -> list[Sequence]:
        """Take in what has come, as far as is looked ahead; return all that wait, in order."""
        while len(self._waiting) < LOOK_AHEAD and (sequence := next(self._arriving, None)) is not None:
            self._waiting.append(sequence)
        return self._waiting

    @property
    def next_frames(self) -> Iterator[FrameEntry]:
        """Frames of the waiting sequences that start from nothing, in order: these must be read."""
        starting = (
            s
            for s in self._waiting
            if s.keys not in self._leading
            and self._prefix_of(s) is None
            and not (self._on_disk and self._on_disk.has(s))
        )
        return (frame for sequence in starting for frame in sequence.request.frames)

    def next_batch(self, now: InFlight) -> list[Sequence]:
        """Return those of the drawn sequences to prefill together now; none while too little is free.

        With nothing in flight there is at least one, as long as any waits.
        """
        state = (now.num_rows, self.in_flight.num)
        has_more = self._on_disk is not None and self._on_disk.any_read
        if now.num_rows and state == self._refused_at and not has_more:
            return []  # none has left since: asking the same at every step would take time from decoding
        chosen = self._chosen(now)
        self._refused_at = None if chosen or not self._waiting else state
        return chosen

    def _chosen(self, now: InFlight) -> list[Sequence]:
        waiting = self._waiting
        num_free = self.in_flight.num - now.num_rows
        if not waiting or num_free < 1:
            return []
        self.prefixes.keep_only([sequence.keys for sequence in waiting])
        if self._on_disk is not None:
            self._load(self._on_disk, now)
        followers = {id(sequence) for sequence in waiting if self._prefix_of(sequence)}
        # Followers first, unless they come without end and the first waits for its turn to lead.
        for_leaders = not followers or (
            self._num_before_first >= LOOK_AHEAD and id(waiting[0]) not in followers
        )
        if num_free < self._min_free_slots(len(waiting) - len(followers) if for_leaders else len(followers)):
            return []
        batch = _Batch(now)
        for sequence in waiting:
            if batch.num_claimed >= num_free or self._is_full(batch):
                break
            is_follower = id(sequence) in followers
            if is_follower == for_leaders or sequence.keys in batch.leading or self._is_coming(sequence):
                continue
            if not (self._follow(batch, sequence) if is_follower else self._lead(batch, sequence)):
                break
        self._leading = batch.leading
        chosen = {id(sequence) for sequence in batch.sequences}
        self._num_before_first = 0 if id(waiting[0]) in chosen else self._num_before_first + len(chosen)
        self._waiting = [sequence for sequence in waiting if id(sequence) not in chosen]
        return batch.sequences

    def keep(self, sequence: Sequence, kept: tuple[LayerRow, ...] | None) -> None:
        """Hold what was ``kept`` of a sequence, now that it is prefilled, and have its row read that."""
        if kept is not None:
            num_bytes = self._memory.prefix_bytes(sequence.num_kept)
            sequence.prefix = SharedPrefix(sequence.prompt, kept, sequence.num_kept, num_bytes)
            self.prefixes.put(sequence.keys, sequence.prefix)
        if not sequence.num_in_place:
            sequence.prefix = None  # its row has a copy

    def _load(self, on_disk: PrefixCache, now: InFlight) -> None:
        """Take in what has been read for the sequences that are next, and have read what they lack.

        With nothing in flight, that of the first is waited for.
        """
        first_of = dict[Keys, Sequence]()
        for sequence in self._waiting:
            first_of.setdefault(sequence.keys, sequence)
        most = self._limits.prefill_batch_size + READ_AHEAD
        room = min(self._memory.max_bytes - self._memory.batch_bytes(now, []), self.prefixes.max_bytes)
        next_ = [s for s in islice(first_of.values(), most) if self._prefix_of(s) is None and on_disk.has(s)]
        sizes = [self._memory.prefix_bytes(s.prefix_name.num_tokens) for s in next_ if s.prefix_name]
        self.prefixes.make_room(room - sum(sizes), now.prefixes)
        room -= self.prefixes.bytes_with(now.prefixes)
        lacking = [s for s, total in zip(next_, accumulate(sizes), strict=True) if total <= room]
        on_disk.expect(lacking)
        is_first = not now.num_rows and bool(lacking) and lacking[0] is self._waiting[0]
        for sequence in lacking:
            prefix = on_disk.take(sequence, wait=is_first)
            is_first = False
            if prefix is not None:
                self.prefixes.put(sequence.keys, prefix)
                self.num_images_read += len(sequence.prompt.images)

    def _is_coming(self, sequence: Sequence) -> bool:
        return self._on_disk is not None and self._on_disk.is_coming(sequence)

    def _min_free_slots(self, num_next: int) -> int:
        """Return how many slots must be free: several may be filled at once, but half is not to lie idle."""
        half = max(1, self.in_flight.num // 2)
        return min(self._limits.prefill_batch_size, half, num_next)

    def _is_full(self, batch: _Batch) -> bool:
        """Whether so many are prefilled together; of questions over prefixes that are read in place, more."""
        num = len(batch.sequences)
        if num < self._limits.prefill_batch_size:
            return False
        columns = [len(each.prompt.ids) - each.num_shared for each in batch.sequences]
        in_place = all(each.num_in_place for each in batch.sequences if each.prefix)
        small = in_place and all(each.prefix for each in batch.sequences)
        return not small or (num + 1) * max(columns) > self._limits.prefill_step_size

    def _prefix_of(self, sequence: Sequence) -> tuple[SharedPrefix, int] | None:
        return self.prefixes.match(sequence.keys, sequence.prompt)

    def _follow(self, batch: _Batch, sequence: Sequence) -> bool:
        """Take in a sequence that starts from a kept prefix, if there is room."""
        self._start(sequence, self._prefix_of(sequence))
        if not self._fits(batch, sequence):
            if not batch.is_idle:
                self._start(sequence, None)  # its prefix may be gone when there is room, and it leads then
                return False
            self._make_room(sequence)
            self._start(sequence, self._prefix_of(sequence))
            self._make_room(sequence)  # for more, if its prefix had to go
        batch.add(sequence)
        return True

    def _start(self, sequence: Sequence, found: tuple[SharedPrefix, int] | None) -> None:
        """Have a sequence start from what is kept of its beginning, if anything, and read that in place."""
        sequence.prefix, sequence.num_shared = found or (None, 0)
        in_place = 0 if sequence.prefix is None else sequence.prefix.num_in_place
        sequence.num_in_place = in_place if self._reads_in_place and sequence.num_shared >= in_place else 0

    def _lead(self, batch: _Batch, sequence: Sequence) -> bool:
        """Take in a sequence that starts from nothing, if there is room, and plan what others get of it."""
        num_followers, num_kept = self._followers(sequence)
        self._keep(sequence, num_kept)
        if not self._fits(batch, sequence):
            if not batch.is_idle:
                self._keep(sequence, 0)
                return False
            self._make_room(sequence)
            if not self._fits(batch, sequence):
                num_followers = 0
                self._keep(sequence, 0)
                self._make_room(sequence)
        batch.add(sequence, num_followers)
        return True

    def _keep(self, sequence: Sequence, num_tokens: int) -> None:
        """Have so much of a sequence kept for others, and read in place by itself."""
        sequence.num_kept = num_tokens
        sequence.num_in_place = end_of_images(sequence.prompt, num_tokens) if self._reads_in_place else 0

    def _followers(self, leader: Sequence) -> tuple[int, int]:
        """Return how many waiting sequences start from what is kept of ``leader``, and how much that is."""
        if not self._limits.share_prefixes:
            return 0, 0
        others = [s for s in self._waiting if s is not leader and s.keys == leader.keys]
        common = [
            (count, len(other.prompt.ids) - 1)
            for other in others
            if (count := num_common(leader.prompt, other.prompt))
        ]
        num_followers = len(common)
        if self.prefixes.lasting and (end := end_of_images(leader.prompt, len(leader.prompt.ids))):
            common.append((end, end))  # whoever asks next about the same frames
        if not self._memory.row_bytes:
            return num_followers, max((count for count, _ in common), default=0)
        num, length = most_saved(leader.prompt, [min(count, most) for count, most in common])
        return min(num, num_followers), length

    def _fits(self, batch: _Batch, sequence: Sequence) -> bool:
        sequences = (*batch.sequences, sequence)
        needed = self._memory.batch_bytes(batch.now, [self._memory.size(each) for each in sequences])
        for each in sequences:
            needed += self._memory.prefix_bytes(each.num_kept)
            if each.num_kept:  # what is read in place is held twice, until it is copied out of the prefill
                needed += each.num_in_place * self._memory.token_bytes
        reading = [*batch.now.prefixes, *(each.prefix for each in sequences if each.prefix)]
        self.prefixes.make_room(self._memory.max_bytes - needed, reading)
        return needed + self.prefixes.bytes_with(reading) <= self._memory.max_bytes

    def _make_room(self, sequence: Sequence) -> None:
        """Drop kept prefixes until a sequence fits that is alone."""
        alone = self._memory.batch_bytes(InFlight(), [self._memory.size(sequence)])
        self.prefixes.shrink(self._memory.max_bytes - alone)
