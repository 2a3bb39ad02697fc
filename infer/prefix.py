"""Shared prefixes: the KV cache of tokens with which several prompts over the same frames begin.

Owns what is kept and its bound in bytes. Attention is causal, so the keys and values of a prompt's first
tokens depend on those tokens alone: any other prompt that begins with them, over the same frames in the
same order, may start from a copy. Who goes first is ``schedule``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cache.key import EntryKey
from infer.kv_rows import KVRow
from infer.tokenizer import PromptTokens

Keys = tuple[EntryKey, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefix:
    """The first tokens of a prompt with their keys and values, one ``KVRow`` a layer."""

    prompt: PromptTokens
    rows: tuple[KVRow, ...]
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        """How many tokens are kept; the prompt they were taken from goes on after them."""
        return int(self.rows[0].keys.shape[2])


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
    """Prefixes that are kept, at most ``max_bytes``. To make room the newest goes: its turn is last."""

    def __init__(self, max_bytes: int) -> None:
        """Begin with nothing kept."""
        self._max_bytes = max_bytes
        self._kept: dict[Keys, SharedPrefix] = {}

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
        return prefix, count

    def put(self, keys: Keys, prefix: SharedPrefix) -> None:
        """Keep a prefix if there is room for it."""
        self._kept.pop(keys, None)
        if self.num_bytes + prefix.num_bytes <= self._max_bytes:
            self._kept[keys] = prefix

    def shrink(self, max_bytes: int) -> None:
        """Drop prefixes, the newest first, until at most so much is held."""
        while self._kept and self.num_bytes > max_bytes:
            self._kept.popitem()

    def keep_only(self, wanted: Sequence[Keys]) -> None:
        """Drop what no waiting request asks for."""
        for keys in self._kept.keys() - set(wanted):
            del self._kept[keys]
