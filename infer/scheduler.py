"""Which sequences are prefilled next: in their order, so that followers find their leader's prefix.

Looks a bounded number of sequences ahead. Of those over the same frames one, the leader, is
prefilled first, and the beginning that it shares with others is kept; they follow at once, ahead of other
frames. A batch is either leaders or followers: beside a whole picture, a question of twenty tokens would
be padded to its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cache.manifest import FrameEntry
from infer.kv_memory import InFlight, KVMemory
from infer.limits import BatchLimits
from infer.prefixes import Keys, PrefixPool, SharedPrefix, most_saved, num_common
from infer.sequence import Sequence

LOOK_AHEAD = 64


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


class Schedule:
    """The waiting sequences, and the prefixes kept for them."""

    def __init__(
        self,
        arriving: Iterator[Sequence | None],
        limits: BatchLimits,
        memory: KVMemory,
        prefixes: PrefixPool | None = None,
    ) -> None:
        """Plan for ``arriving``, each of which fits into ``memory`` alone; they are drawn as needed.

        ``None`` among them says that nothing more has come yet. ``prefixes`` may hold some of before.
        """
        self._arriving, self._limits, self._memory = arriving, limits, memory
        self._waiting: list[Sequence] = []
        self._led: set[Keys] = set()
        self._refused_at: int | None = None
        self.prefixes = prefixes or PrefixPool(memory.max_bytes if limits.share_prefixes else 0)

    @property
    def upcoming(self) -> list[Sequence]:
        """The waiting sequences that are known, in order; empty when all have been handed out."""
        while len(self._waiting) < LOOK_AHEAD and (sequence := next(self._arriving, None)) is not None:
            self._waiting.append(sequence)
        return self._waiting

    @property
    def next_frames(self) -> Iterator[FrameEntry]:
        """Frames of the waiting sequences that start from nothing, in order: these must be read."""
        starting = (s for s in self._waiting if s.keys not in self._led and self._prefix_of(s) is None)
        return (frame for sequence in starting for frame in sequence.request.frames)

    def next_batch(self, now: InFlight) -> list[Sequence]:
        """Return the sequences to prefill together now; none while too few slots or bytes are free.

        With nothing in flight there is at least one, as long as any waits.
        """
        if now.num_rows and now.num_rows == self._refused_at:
            return []  # none has left since: asking the same at every step would take time from decoding
        chosen = self._chosen(now)
        self._refused_at = None if chosen or not self._waiting else now.num_rows
        return chosen

    def _chosen(self, now: InFlight) -> list[Sequence]:
        waiting = self.upcoming
        num_free = self._limits.max_num_seqs - now.num_rows
        if not waiting or num_free < 1:
            return []
        self.prefixes.keep_only([sequence.keys for sequence in waiting])
        followers = {id(sequence) for sequence in waiting if self._prefix_of(sequence)}
        most = min(self._limits.prefill_batch_size, self._limits.max_num_seqs)
        if num_free < self._worth_a_prefill(len(followers) or len(waiting)):
            return []
        batch = _Batch(now)
        for sequence in waiting:
            if len(batch.sequences) == most or batch.num_claimed >= num_free:
                break
            is_follower = id(sequence) in followers
            if is_follower != bool(followers) or sequence.keys in batch.leading:
                continue
            if not (self._follow(batch, sequence) if is_follower else self._lead(batch, sequence)):
                break
        self._led = batch.leading
        chosen = {id(sequence) for sequence in batch.sequences}
        self._waiting = [sequence for sequence in waiting if id(sequence) not in chosen]
        return batch.sequences

    def _worth_a_prefill(self, num_next: int) -> int:
        """Return how many slots must be free: several may be filled at once, but half is not to lie idle."""
        half = max(1, self._limits.max_num_seqs // 2)
        return min(self._limits.prefill_batch_size, half, num_next)

    def _prefix_of(self, sequence: Sequence) -> tuple[SharedPrefix, int] | None:
        return self.prefixes.match(sequence.keys, sequence.prompt)

    def _follow(self, batch: _Batch, sequence: Sequence) -> bool:
        """Take in a sequence that starts from a kept prefix, if there is room."""
        if not self._fits(batch, sequence, 0):
            if not batch.is_idle:
                return False
            self._make_room(sequence)
        sequence.prefix, sequence.num_shared = self._prefix_of(sequence) or (None, 0)
        batch.add(sequence)
        return True

    def _lead(self, batch: _Batch, sequence: Sequence) -> bool:
        """Take in a sequence that starts from nothing, if there is room, and plan what others get of it."""
        num_followers, num_kept = self._followers(sequence)
        if not self._fits(batch, sequence, num_kept):
            if not batch.is_idle:
                return False
            self._make_room(sequence)
            if not self._fits(batch, sequence, num_kept):
                num_followers = num_kept = 0
        sequence.num_kept = num_kept
        batch.add(sequence, num_followers)
        return True

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
        if not common and self.prefixes.lasting and leader.prompt.images:
            last = leader.prompt.images[-1]
            return 0, last.start + last.num_tokens
        if not self._memory.row_bytes:
            return len(common), max((count for count, _ in common), default=0)
        return most_saved(leader.prompt, [min(count, most) for count, most in common])

    def _fits(self, batch: _Batch, sequence: Sequence, num_kept: int) -> bool:
        kept = [num_kept, *(other.num_kept for other in batch.sequences)]
        sizes = [self._memory.size(each) for each in (*batch.sequences, sequence)]
        needed = self._memory.batch_bytes(batch.now, sizes)
        needed += sum(map(self._memory.prefix_bytes, kept))
        self.prefixes.make_room(self._memory.max_bytes - needed)
        return needed + self.prefixes.num_bytes <= self._memory.max_bytes

    def _make_room(self, sequence: Sequence) -> None:
        """Drop kept prefixes until a sequence fits that is alone."""
        alone = self._memory.batch_bytes(InFlight(), [self._memory.size(sequence)])
        self.prefixes.shrink(self._memory.max_bytes - alone)
