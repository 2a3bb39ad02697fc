"""Prefixes that waiting prompts share: how long they are, and which are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache.key import EntryKey
from infer.kv_cache import LayerRow, RecurrentRow
from infer.tokenizer import PromptTokens

Keys = tuple[EntryKey, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """The first ``num_tokens`` of a prompt, which goes on after them, with what each layer keeps of them."""

    prompt: PromptTokens
    rows: tuple[LayerRow, ...]
    num_tokens: int
    num_bytes: int

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


class PrefixPool:
    """Prefixes that are kept, at most ``max_bytes``. To make room the newest goes: its turn is last.

    A ``lasting`` pool also keeps what nobody waits for, as long as there is room: the next question about
    the same frames may come any time. Of that the least recently wanted goes first, before all others.
    """

    def __init__(self, max_bytes: int, *, lasting: bool = False) -> None:
        """Begin with nothing kept."""
        self.lasting = lasting
        self._max_bytes = max_bytes
        self._kept: dict[Keys, SharedPrefix] = {}
        self._wanted: set[Keys] = set()

    @property
    def num_bytes(self) -> int:
        """What is held now."""
        return sum(prefix.num_bytes for prefix in self._kept.values())

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
        self.make_room(self._max_bytes - prefix.num_bytes)
        if self.num_bytes + prefix.num_bytes <= self._max_bytes:
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

    def make_room(self, max_bytes: int) -> None:
        """Drop what no waiting request asks for until at most so much is held."""
        for keys in [keys for keys in self._kept if keys not in self._wanted]:
            if self.num_bytes <= max_bytes:
                return
            del self._kept[keys]
