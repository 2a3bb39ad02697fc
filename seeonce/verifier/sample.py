"""Which entries a sample takes, and what a sample without a fault says of those that it left out."""

import random

from cache.base.errors import InputError
from cache.key import EntryKey
from cache.manifest import FrameEntry, Manifest
from seeonce.verifier.report import Confidence

CONFIDENCE_PERCENT = 95
Group = list[FrameEntry]
"""The frames that name one entry."""


def sample_size(sample: str) -> int | None:
    """Read ``--sample``: a number of entries, or ``None`` for all.

    Raises:
        InputError: neither a number above 0 nor ``all``.
    """
    if sample == "all":
        return None
    if sample.isascii() and sample.isdigit() and int(sample) > 0:
        return int(sample)
    raise InputError(f"--sample is {sample!r}; expected a number of entries above 0, or all.")


def entry_groups(manifest: Manifest) -> list[Group]:
    """Return the frames of each entry, in the order of the recording."""
    by_key: dict[EntryKey, Group] = {}
    for frame in manifest.frames:
        by_key.setdefault(frame.key, []).append(frame)
    return list(by_key.values())


def draw(groups: list[Group], size: int | None, seed: int) -> list[Group]:
    """Draw ``size`` entries, from every size of picture in proportion and one at least, as far as it goes."""
    if size is None or size >= len(groups):
        return groups
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    shuffled = [rng.sample(stratum, len(stratum)) for stratum in strata(groups)]
    rng.shuffle(shuffled)
    taken: list[Group] = []
    counts = [0] * len(shuffled)
    while len(taken) < size:
        # The stratum that is furthest behind its share; those with nothing yet come first.
        behind = min(
            range(len(shuffled)), key=lambda at: (counts[at] > 0, _share_taken(shuffled[at], counts[at]))
        )
        taken.append(shuffled[behind][counts[behind]])
        counts[behind] += 1
    return sorted(taken, key=lambda group: group[0].index)


def confidence(groups: list[Group], checked: list[Group]) -> Confidence:
    """Return how few entries are wrong, when those checked are all right, with 95 % confidence.

    The exact chance that a stratified sample misses every wrong entry, for the way of spreading them
    over the strata that hides them best. Strata are sizes of pictures.
    """
    num_checked = {stratum[0][0].grid_thw: 0 for stratum in strata(groups)}
    for group in checked:
        num_checked[group[0].grid_thw] += 1
    sizes = [(len(stratum), num_checked[stratum[0][0].grid_thw]) for stratum in strata(groups)]
    return Confidence(CONFIDENCE_PERCENT, len(checked), len(groups), _fewest_excluded(sizes), "entry")


def confidence_words(found: Confidence) -> str:
    """Say a confidence in plain words."""
    if found.num_checked == found.num_total:
        return "all were checked"
    percent = -(-100 * found.fewer_than // found.num_total)
    if found.fewer_than > found.num_total - found.num_checked:
        return "too few to say anything about the others"
    return (
        f"with {found.percent} % confidence fewer than {found.fewer_than} of {found.num_total} "
        f"({percent} %) are wrong"
    )


def _fewest_excluded(sizes: list[tuple[int, int]]) -> int:
    """Return the least number of wrong entries that (size, checked) strata would have missed with < 5 %."""
    missed, allowed = 1.0, 1 - CONFIDENCE_PERCENT / 100
    wrong = [0] * len(sizes)
    while missed >= allowed:
        # One more wrong entry in a stratum is missed with the chance that it lies among those not drawn.
        chances = [
            max(0, size - checked - hidden) / (size - hidden) if hidden < size else 0.0
            for (size, checked), hidden in zip(sizes, wrong, strict=True)
        ]
        best = max(range(len(sizes)), key=chances.__getitem__)
        missed *= chances[best]
        wrong[best] += 1
    return sum(wrong)


def strata(groups: list[Group]) -> list[list[Group]]:
    """Return the entries of each size of picture."""
    by_size: dict[tuple[int, int, int], list[Group]] = {}
    for group in groups:
        by_size.setdefault(group[0].grid_thw, []).append(group)
    return list(by_size.values())


def _share_taken(stratum: list[Group], count: int) -> float:
    return (count + 1) / len(stratum) if count < len(stratum) else float("inf")
