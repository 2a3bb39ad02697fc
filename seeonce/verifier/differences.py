"""How two features or two answers compare, in numbers and in words. Arrays in, verdicts out."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError
from cache.entry import EntryInfo, Features, Provenance, layer_names
from seeonce.verifier.report import LayerFigures, ProvenanceDifference, Tolerances


def feature_differences(stored: Features, live: Features) -> list[LayerFigures] | None:
    """Compare one entry layer by layer, merged first; ``None`` for another shape, dtype or grid."""
    if (stored.array.shape, stored.dtype, stored.grid_thw) != (live.array.shape, live.dtype, live.grid_thw):
        return None
    return [
        _difference(name, mine, theirs)
        for name, mine, theirs in zip(layer_names(len(stored.array)), stored.array, live.array, strict=True)
    ]


def feature_problem(
    stored: Features, live: Features, differences: list[LayerFigures] | None, tolerance: float
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


def layer_figures(entries: Iterable[list[LayerFigures]]) -> tuple[LayerFigures, ...]:
    """Sum up the layers of all compared entries, in the order of an entry's layers."""
    by_layer: dict[str, list[LayerFigures]] = {}
    for differences in entries:
        for difference in differences:
            by_layer.setdefault(difference.layer, []).append(difference)
    return tuple(
        LayerFigures(
            layer=layer,
            num_entries=len(found),
            num_exact=sum(difference.num_exact for difference in found),
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


def _difference(name: str, mine: NDArray[np.generic], theirs: NDArray[np.generic]) -> LayerFigures:
    if mine.tobytes() == theirs.tobytes():
        return LayerFigures(name, 1, 1, 0.0, 0.0, 0.0, 0.0, 1.0)
    stored, live = as_float32(mine), as_float32(theirs)
    difference = stored - live
    norm = float(np.linalg.norm(live)) or 1.0
    cosine = float(np.vdot(stored, live)) / ((float(np.linalg.norm(stored)) or 1.0) * norm)
    tokens = np.linalg.norm(live, axis=-1)
    by_token = np.linalg.norm(difference, axis=-1) / np.maximum(tokens, tokens.mean() or 1.0)
    return LayerFigures(
        layer=name,
        num_entries=1,
        num_exact=0,
        max_abs=float(np.abs(difference).max()),
        mean_abs=float(np.abs(difference).mean()),
        relative=float(np.linalg.norm(difference)) / norm,
        worst_token=float(by_token.max()),
        cosine=cosine,
    )


def logprob_distances(
    one: Sequence[tuple[float, ...]], other: Sequence[tuple[float, ...]]
) -> list[NDArray[np.float64]]:
    """Return how far log-probabilities lie apart, position by position, as far as both go."""
    return [np.abs(np.subtract(mine, theirs)) for mine, theirs in zip(one, other, strict=False)]


def first_difference(mine: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return where two sequences of tokens first differ, one's end included; ``None`` if nowhere."""
    pairs = zip(mine, theirs, strict=False)
    shorter = min(len(mine), len(theirs))
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
    return None if at == len(mine) == len(theirs) else at


def margin_at(margins: Sequence[float], position: int) -> float:
    """Return the winning margin at a position of an answer, or the last one for what lies behind its end."""
    return margins[min(position, len(margins) - 1)]


def trace_problem(
    live_tokens: Sequence[int],
    live_margins: Sequence[float],
    distances: Sequence[NDArray[np.float64]],
    best_tokens: Sequence[int],
    tolerance: float,
) -> str | None:
    """Say where decoding under live's tokens differs from live beyond rounding, ``None`` if nowhere.

    ``distances`` are those of ``logprob_distances``, that of the token taken first. Another best token is
    explained only where live's own winning margin is within the tolerance.
    """
    if len(distances) != len(live_tokens):
        return f"{len(distances)} positions against {len(live_tokens)} live"
    for at, distance in enumerate(distances):
        if not distance[0] <= tolerance:
            return f"token {at}: log-probability {distance[0]:.3g} away from live"
        if best_tokens[at] != live_tokens[at] and live_margins[at] > tolerance:
            return f"token {at}: another token wins, live's margin is {live_margins[at]:.3g}"
    return None


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
