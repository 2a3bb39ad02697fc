"""Two columns of answers against each other: agreement, similarity, and where they part most."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from seeonce.runs.parse import Description, parse_description

MATCH_ABOVE = 0.8
_MAX_CHARACTERS = 1_000
_MAX_WORDS = 1_500
_WORD = re.compile(r"\S+")


def similarity(left: str, right: str) -> float:
    """Return difflib's ratio of two texts, 0.0 to 1.0, the same in both directions.

    Characters are compared up to 1,000 of them, words up to 1,500; beyond, how many words are shared.
    """
    first, second = sorted((normalised(left), normalised(right)))
    if first == second:
        return 1.0
    if max(len(first), len(second)) <= _MAX_CHARACTERS:
        return SequenceMatcher(None, first, second, autojunk=False).ratio()
    return word_similarity(first, second)


def word_similarity(left: str, right: str) -> float:
    """Return difflib's ratio over words instead of characters: coarser, and a hundred times as fast."""
    first, second = sorted((_WORD.findall(left), _WORD.findall(right)))
    if first == second:
        return 1.0
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return matcher.ratio() if max(len(first), len(second)) <= _MAX_WORDS else matcher.quick_ratio()


def normalised(text: str) -> str:
    """Return a text whose white space says nothing: what is left of a difference is one of words."""
    return " ".join(text.split())


FrameRef = tuple[str, int]
"""A frame: its recording's id and its index."""

_NUM_CHANGED_MOST = 10


@dataclass(frozen=True, slots=True)
class Said:
    """An answer to be compared: its text, and its fields when it has them."""

    text: str
    description: Description | None

    @classmethod
    def of(cls, text: str) -> "Said":
        """Take a text that may be a description line."""
        return cls(text, parse_description(text))

    @property
    def words(self) -> str:
        """Its description alone where it has fields, else all of it."""
        return self.text if self.description is None else self.description.description


@dataclass(frozen=True, slots=True)
class Answers:
    """One side of a comparison. ``num_failed`` answers were errors and are not compared."""

    name: str
    said: Mapping[FrameRef, Said]
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class FrameChange:
    """How much one frame's answer changed; ``similarity`` is 1.0 when it did not.

    ``left`` and ``right`` are the texts that were compared.
    """

    recording: str
    frame: int
    similarity: float
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class AppCount:
    """An application, and on how many frames it is named by one side alone."""

    app: str
    num_frames: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two sides have in common. Rates are shares of ``num_frames``, the frames that both answered."""

    left: str
    right: str
    num_frames: int
    num_left_only: int
    num_right_only: int
    num_failed: int
    agreement: float
    match_rate: float
    mean_similarity: float
    apps_left_only: tuple[AppCount, ...]
    apps_right_only: tuple[AppCount, ...]
    changed_most: tuple[FrameChange, ...]


def compare(left: Answers, right: Answers) -> Comparison:
    """Compare what two sides said about the frames that both speak of.

    ``agreement`` counts equal texts, ``match_rate`` those whose similarity is above 0.8.
    """
    places = sorted(left.said.keys() & right.said.keys())
    pairs = [(left.said[place], right.said[place]) for place in places]
    changes = [
        FrameChange(*place, likeness(*pair), *_comparable(*pair))
        for place, pair in zip(places, pairs, strict=True)
    ]
    num_frames = len(changes)
    ratios = [change.similarity for change in changes]
    parted = [change for change in changes if change.similarity < 1]
    parted.sort(key=lambda change: (change.similarity, change.recording, change.frame))
    return Comparison(
        left=left.name,
        right=right.name,
        num_frames=num_frames,
        num_left_only=len(left.said) - num_frames,
        num_right_only=len(right.said) - num_frames,
        num_failed=left.num_failed + right.num_failed,
        agreement=_share(sum(ratio == 1 for ratio in ratios), num_frames),
        match_rate=_share(sum(ratio > MATCH_ABOVE for ratio in ratios), num_frames),
        mean_similarity=_share(sum(ratios), num_frames),
        apps_left_only=_named_by_first_only(pairs),
        apps_right_only=_named_by_first_only((right, left) for left, right in pairs),
        changed_most=tuple(parted[:_NUM_CHANGED_MOST]),
    )


def likeness(left: Said, right: Said) -> float:
    """Return how alike two answers are, 0.0 to 1.0; 1.0 when they differ in white space at most."""
    first, second = _comparable(left, right)
    return 1.0 if normalised(first) == normalised(second) else min(similarity(first, second), 1 - 1e-9)


def _comparable(left: Said, right: Said) -> tuple[str, str]:
    """Return the texts of two answers; of a line of fields against a sentence, its description alone."""
    if left.text == left.words or right.text == right.words:
        return left.words, right.words
    return left.text, right.text


def _named_by_first_only(pairs: Iterable[tuple[Said, Said]]) -> tuple[AppCount, ...]:
    """Count applications that the first of each pair names and the second, which has fields, does not."""
    counts = Counter(
        app
        for left, right in pairs
        if left.description is not None and right.description is not None
        for app in as_items(left.description.apps) - as_items(right.description.apps)
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(AppCount(app, count) for app, count in ordered)


def as_items(names: Iterable[str]) -> frozenset[str]:
    """Return names without case, surrounding space and repetition."""
    return frozenset(item for name in names if (item := normalised(name).casefold()))


def _share(count: float, total: int) -> float:
    return count / total if total else 0.0
