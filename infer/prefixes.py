"""Prefixes that waiting prompts share: how long they are, and which are kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cache.key import EntryKey, FieldHasher
from cache.prefixes import PrefixKey
from infer.kv_cache import KVRow, LayerRow, RecurrentRow
from infer.tokenizer import PromptTokens

Keys = tuple[EntryKey, ...]


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """The first ``num_tokens`` of a prompt, which goes on after them, with what each layer keeps of them."""

    prompt: PromptTokens
    rows: tuple[LayerRow, ...]
    num_tokens: int
    num_bytes: int

    @cached_property
    def num_in_place(self) -> int:
        """How many of its tokens rows read in place."""
        return end_of_images(self.prompt, self.num_tokens)

    def in_place(self, layer: int) -> KVRow:
        """Return keys and values of those tokens in a layer of attention."""
        row = self._in_place[layer]
        if row is None:
            raise TypeError(f"layer {layer} keeps no keys and values")
        return row

    @cached_property
    def _in_place(self) -> list[KVRow | None]:  # cut out once, not at each step
        return [row.between(0, self.num_in_place) if isinstance(row, KVRow) else None for row in self.rows]

    @property
    def is_whole(self) -> bool:
        """Whether it is of use only as a whole, for a recurrent state cannot be cut back."""
        return any(isinstance(row, RecurrentRow) for row in self.rows)


def num_common(one: PromptTokens, other: PromptTokens) -> int:
    """Return with how many tokens both prompts begin, over the same frames; 0 unless an image is among them.

    The same ids with an image in another place are not the same tokens.
    """
    count = _first_difference(one.ids, other.ids)
    for mine, theirs in zip(one.images, other.images, strict=False):
        if mine != theirs:
            count = min(count, mine.start, theirs.start)
    images = min(len(one.images), len(other.images))
    for longer in (one.images[images:], other.images[images:]):
        count = min([count, *(span.start for span in longer)])
    return count if one.images and count > one.images[0].start else 0


def end_of_images(prompt: PromptTokens, num_tokens: int) -> int:
    """Return where the last image ends that is whole among the first ``num_tokens``; 0 without one."""
    ends = (span.start + span.num_tokens for span in prompt.images)
    return max((end for end in ends if end <= num_tokens), default=0)


def most_saved(prompt: PromptTokens, common: list[int]) -> tuple[int, int]:
    """Return how many followers there are, and the one length that all share; each shares ``common`` of it.

    A recurrent state cannot be cut back, so whoever shares less has no use of it. The length is that
    which saves the most images, and of those the most tokens.
    """
    ends = [span.start + span.num_tokens for span in prompt.images]
    best, saved = (0, 0), (0, 0)
    for length in sorted({length for length in common if length > prompt.images[0].start}):
        num = sum(count >= length for count in common)
        saves = (num * sum(end <= length for end in ends), num * length)
        if saves > saved:
            best, saved = (num, length), saves
    return best


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return the length of the common beginning; slices compare in C, so halving beats a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


_CONTEXT = "seeonce 2026-11 prefix key, format 1"

PREFIX_EPOCH = 1
"""Raised when what is kept of a prefix changes, so that older ones are no longer found."""


@dataclass(frozen=True, slots=True)
class PrefixName:
    """What a prompt begins with up to the end of its last image: ``num_tokens``, and what names them."""

    key: PrefixKey
    num_tokens: int


def prefix_name(keys: Keys, prompt: PromptTokens, computed_by: tuple[str, ...]) -> PrefixName | None:
    """Name what a later prompt over the same frames begins with, too; None for a prompt without images.

    ``computed_by`` are the weights, the type and what computes: all on which keys and values depend.
    """
    if not prompt.images:
        return None
    last = prompt.images[-1]
    num_tokens = last.start + last.num_tokens
    hasher = FieldHasher(_CONTEXT)
    hasher.add_all([PREFIX_EPOCH, computed_by, tuple(key.raw for key in keys)])
    hasher.add(tuple((span.start, span.num_tokens, span.grid_thw) for span in prompt.images))
    hasher.add_buffer(np.array(prompt.ids[:num_tokens], "<i8"))
    return PrefixName(PrefixKey(hasher.digest()), num_tokens)


class PrefixPool:
    """Prefixes that are kept, at most ``max_bytes``. To make room the newest goes: its turn is last.

    A ``lasting`` pool also keeps what nobody waits for, as long as there is room: the next question about
    the same frames may come any time. Of that the least recently wanted goes first, before all others.
    """

    def __init__(self, max_bytes: int, *, lasting: bool = False) -> None:
        """Begin with nothing kept."""
        self.lasting = lasting
        self.max_bytes = max_bytes
        self._kept: dict[Keys, SharedPrefix] = {}
        self._wanted: set[Keys] = set()

    @property
    def num_bytes(self) -> int:
        """What is held now."""
        return sum(prefix.num_bytes for prefix in self._kept.values())

    def bytes_with(self, read: Iterable[SharedPrefix]) -> int:
        """Return what is held, with the prefixes that rows read though they are no longer kept here."""
        return sum(prefix.num_bytes for prefix in {*self._kept.values(), *read})

    def match(self, keys: Keys, prompt: PromptTokens) -> tuple[SharedPrefix, int] | None:
        """Return a prefix and how many of its tokens ``prompt`` begins with; the last token is never one.

        The last token of a prompt must run through the decoder: its logits are the answer's beginning.
        """
        prefix = self._kept.get(keys)
        if prefix is None:
            return None
        common = num_common(prefix.prompt, prompt)
        count = min(common, prefix.num_tokens, len(prompt.ids) - 1)
        if not common or count <= prompt.images[0].start:
            return None
        if prefix.is_whole and count < prefix.num_tokens:
            return None
        return prefix, count

    def put(self, keys: Keys, prefix: SharedPrefix) -> None:
        """Keep a prefix if there is room for it."""
        self._kept.pop(keys, None)
        self.make_room(self.max_bytes - prefix.num_bytes)
        if self.num_bytes + prefix.num_bytes <= self.max_bytes:
            self._kept[keys] = prefix

    def shrink(self, max_bytes: int) -> None:
        """Drop prefixes, the newest first, until at most so much is held."""
        while self._kept and self.num_bytes > max_bytes:
            self._kept.popitem()

    def keep_only(self, wanted: Sequence[Keys]) -> None:
        """Drop what no waiting request asks for; a lasting pool drops it when room is needed."""
        self._wanted = set(wanted)
        if not self.lasting:
            self.make_room(-1)
        for keys in [keys for keys in self._kept if keys in self._wanted]:
            self._kept[keys] = self._kept.pop(keys)

    def make_room(self, max_bytes: int, read: Iterable[SharedPrefix] = ()) -> None:
        """Drop what no waiting request asks for, and no row reads, until at most so much is held."""
        read = set(read)
        for keys in [keys for keys in self._kept if keys not in self._wanted]:
            if self.bytes_with(read) <= max_bytes:
                return
            if self._kept[keys] not in read:
                del self._kept[keys]
