"""How two features or two answers compare, in numbers and in words. Arrays in, verdicts out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.entry import EntryInfo, Features, Provenance, layer_names
from seeonce.verifier.report import LayerFigures, ProvenanceDifference, Tolerances

_WORST_TOKEN = 10
"""A token may lie this many times further away than its layer: one wrong token hides in a large layer."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One layer of stored features against live ones; ``exact`` when every bit agrees."""

    layer: str
    exact: bool
    max_abs: float
    mean_abs: float
    relative: float
    worst_token: float
    cosine: float

    def within(self, tolerance: float) -> bool:
        """Tell whether the layer as a whole and each of its tokens is near enough."""
        if tolerance == 0:
            return self.exact
        return self.relative <= tolerance and self.worst_token <= _WORST_TOKEN * tolerance


def feature_differences(stored: Features, live: Features) -> list[LayerDifference] | None:
    """Return every layer, merged first; ``None`` for another shape, dtype or grid."""
    if (stored.array.shape, stored.dtype, stored.grid_thw) != (live.array.shape, live.dtype, live.grid_thw):
        return None
    return [
        _difference(name, mine, theirs)
        for name, mine, theirs in zip(layer_names(len(stored.array)), stored.array, live.array, strict=True)
    ]


def feature_problem(
    stored: Features, live: Features, differences: list[LayerDifference] | None, tolerance: float
) -> str | None:
    """Say how stored features differ from live ones by more than ``tolerance``, or ``None``."""
    if differences is None:
        return (
            f"{stored.array.shape} {stored.dtype}, grid {stored.grid_thw}; "
            f"live {live.array.shape} {live.dtype}, grid {live.grid_thw}"
        )
    beyond = [difference for difference in differences if not difference.within(tolerance)]
    if not beyond:
        return None
    first = beyond[0]
    return (
        f"{len(beyond)} of {len(differences)} layers differ, first {first.layer}: max |difference| "
        f"{first.max_abs:.3g}, relative {first.relative:.3g}, of one token {first.worst_token:.3g}, "
        f"cosine {first.cosine:.6f}; tolerance {tolerance:g}"
    )


def layer_figures(entries: Iterable[list[LayerDifference]]) -> tuple[LayerFigures, ...]:
    """Sum up the layers of all compared entries, in the order of an entry's layers."""
    by_layer: dict[str, list[LayerDifference]] = {}
    for differences in entries:
        for difference in differences:
            by_layer.setdefault(difference.layer, []).append(difference)
    return tuple(
        LayerFigures(
            layer=layer,
            num_entries=len(found),
            num_exact=sum(difference.exact for difference in found),
            max_abs=max(difference.max_abs for difference in found),
            mean_abs=sum(difference.mean_abs for difference in found) / len(found),
            relative=max(difference.relative for difference in found),
            worst_token=max(difference.worst_token for difference in found),
            cosine=min(difference.cosine for difference in found),
        )
        for layer, found in by_layer.items()
    )


def as_float32(layer: NDArray[np.generic]) -> NDArray[np.float32]:
    """Widen stored values; uint16 holds the upper half of a float32, which is what bfloat16 is."""
    if layer.dtype == np.uint16:
        return (layer.astype(np.uint32) << 16).view(np.float32)
    return layer.astype(np.float32)


def _difference(name: str, mine: NDArray[np.generic], theirs: NDArray[np.generic]) -> LayerDifference:
    if mine.tobytes() == theirs.tobytes():
        return LayerDifference(name, True, 0.0, 0.0, 0.0, 0.0, 1.0)
    stored, live = as_float32(mine), as_float32(theirs)
    difference = stored - live
    norm = float(np.linalg.norm(live)) or 1.0
    cosine = float(np.vdot(stored, live)) / ((float(np.linalg.norm(stored)) or 1.0) * norm)
    tokens = np.linalg.norm(live, axis=-1)
    by_token = np.linalg.norm(difference, axis=-1) / np.maximum(tokens, tokens.mean() or 1.0)
    return LayerDifference(
        layer=name,
        exact=False,
        max_abs=float(np.abs(difference).max()),
        mean_abs=float(np.abs(difference).mean()),
        relative=float(np.linalg.norm(difference)) / norm,
        worst_token=float(by_token.max()),
        cosine=cosine,
    )


@dataclass(frozen=True, slots=True)
class TraceDifference:
    """How batched decoding under live's tokens compares with live, position by position.

    ``problem`` says where it parts from live beyond rounding, ``None`` if nowhere. ``distances`` are the
    mean distance, over live's most likely tokens, of each position; ``largest`` that of the token taken.
    ``num_other_tokens`` counts explained divergences.
    """

    problem: str | None
    distances: tuple[float, ...] = ()
    largest: float = 0.0
    num_other_tokens: int = 0


def rounding_noise(one: Sequence[tuple[float, ...]], other: Sequence[tuple[float, ...]]) -> float:
    """Return the mean distance of log-probabilities that two runs of live give the same positions."""
    apart = [
        float(np.abs(np.subtract(mine, theirs)).mean()) for mine, theirs in zip(one, other, strict=False)
    ]
    return sum(apart) / len(apart) if apart else 0.0


def first_difference(mine: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return where two sequences of tokens first differ, one's end included; ``None`` if nowhere."""
    pairs = zip(mine, theirs, strict=False)
    shorter = min(len(mine), len(theirs))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
    return None if at == len(mine) == len(theirs) else at


def margin_at(margins: Sequence[float], position: int) -> float:
    """Return the winning margin at a position of an answer, or the last one for what lies behind its end."""
    return margins[min(position, len(margins) - 1)]


def trace_difference(
    live_tokens: tuple[int, ...],
    live_logprobs: tuple[tuple[float, ...], ...],
    live_margins: tuple[float, ...],
    logprobs: tuple[tuple[float, ...], ...],
    best_tokens: tuple[int, ...],
    tolerance: float,
) -> TraceDifference:
    """Compare position by position.

    Another best token is explained only when live's own winning margin there is within the tolerance.
    """
    if len(logprobs) != len(live_tokens):
        return TraceDifference(f"{len(logprobs)} positions against {len(live_tokens)} live")
    problem = None
    apart = [np.abs(np.subtract(mine, live)) for mine, live in zip(logprobs, live_logprobs, strict=True)]
    taken = [float(distances[0]) for distances in apart]
    others = [at for at, best in enumerate(best_tokens) if best != live_tokens[at]]
    for at, distance in enumerate(taken):
        if not distance <= tolerance:
            problem = f"token {at}: log-probability {distance:.3g} away from live"
        elif at in others and live_margins[at] > tolerance:
            problem = f"token {at}: another token wins, live's margin is {live_margins[at]:.3g}"
        if problem is not None:
            break
    means = tuple(float(distances.mean()) for distances in apart)
    return TraceDifference(problem, means, max(taken, default=0.0), len(others))


FEATURES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
"""How far features may lie from those of other versions or another device, relative to their norm."""

LOGPROB = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2.5e-1}
"""How far a batched log-probability may lie from one request at a time: batch shape changes rounding."""

MEAN_LOGPROB = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 3e-2}
"""How far the eight most likely tokens may lie in the mean over all positions: offsets by one show there."""


def tolerances(dtype: str, features: float | None, logprob: float | None) -> Tolerances:
    """Return the tolerances of a dtype, as far as the user gives no others.

    ``features`` then holds for all entries, whatever computed them; ``logprob`` for each position and for
    the mean.

    Raises:
        InputError: one that is given is no number of 0 or more.
    """
    for name, value in (("--tolerance", features), ("--logprob-tolerance", logprob)):
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{name} is {value}; expected a number of 0 or more, as in {name} 1e-4")
    return Tolerances(
        features_same=0.0 if features is None else features,
        features_other=FEATURES[dtype] if features is None else features,
        logprob=LOGPROB[dtype] if logprob is None else logprob,
        mean_logprob=MEAN_LOGPROB[dtype] if logprob is None else logprob,
        given=features is not None or logprob is not None,
    )


_DECIDES = ("mlx", "mlx_vlm", "device", "chip")
_SHOWN = (*_DECIDES, "seeonce")


def same_provenance(stored: Provenance, here: Provenance) -> bool:
    """Tell whether an entry was computed by the versions, device and chip that compute here.

    An entry that does not say what computed it was not.
    """
    return all(
        getattr(stored, field) and getattr(stored, field) == getattr(here, field) for field in _DECIDES
    )


def provenance_differences(infos: Iterable[EntryInfo], here: Provenance) -> tuple[ProvenanceDifference, ...]:
    """Count the entries whose mlx, mlx-vlm, device, chip or seeonce is another, or is not recorded."""
    counts: Counter[tuple[str, str]] = Counter()
    for info in infos:
        for field in _SHOWN:
            stored = getattr(info.provenance, field)
            if stored != getattr(here, field) or not stored:
                counts[field, stored] += 1
    return tuple(
        ProvenanceDifference(field, stored, getattr(here, field), count)
        for (field, stored), count in sorted(counts.items())
    )
