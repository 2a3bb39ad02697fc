"""How two features or two answers compare, in numbers and in words. Arrays in, verdicts out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.entry import Features

LOGPROB_TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2.5e-1}
"""How far batched log-probabilities may lie from one request at a time: batch shape changes rounding."""

RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
"""How far features may lie from those of other versions or another device, relative to their norm."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One layer of stored features against live ones."""

    layer: str
    max_abs: float
    relative: float
    worst_token: float
    cosine: float


def feature_differences(stored: Features, live: Features) -> list[LayerDifference] | None:
    """Return the differing layers, merged first; empty when every bit agrees, ``None`` for other shapes."""
    if (stored.array.shape, stored.dtype, stored.grid_thw) != (live.array.shape, live.dtype, live.grid_thw):
        return None
    names = ["merged", *(f"deepstack.{index}" for index in range(len(stored.deepstack)))]
    return [
        _difference(name, as_float32(mine), as_float32(theirs))
        for name, mine, theirs in zip(names, stored.array, live.array, strict=True)
        if mine.tobytes() != theirs.tobytes()
    ]


def feature_problem(stored: Features, live: Features, *, same_provenance: bool) -> str | None:
    """Say how stored features differ from live ones more than their provenance explains, or ``None``.

    The same versions and device give the same bits. Others may round otherwise, within the tolerance for
    each layer as a whole and ten times that for each token: one wrong token hides in a large layer.
    """
    differences = feature_differences(stored, live)
    if differences is None:
        return f"{stored.array.shape} {stored.dtype}, live {live.array.shape} {live.dtype}"
    tolerance = 0.0 if same_provenance else RELATIVE_TOLERANCE[stored.dtype]
    beyond = [d for d in differences if not (d.relative <= tolerance and d.worst_token <= 10 * tolerance)]
    if not beyond:
        return None
    first = beyond[0]
    return (
        f"{len(beyond)} layers differ, first {first.layer}: max |difference| {first.max_abs:.3g}, relative "
        f"{first.relative:.3g}, of one token {first.worst_token:.3g}, cosine {first.cosine:.6f}; "
        f"tolerance {tolerance:g}"
    )


def as_float32(layer: NDArray[np.generic]) -> NDArray[np.float32]:
    """Widen stored values; uint16 holds the upper half of a float32, which is what bfloat16 is."""
    if layer.dtype == np.uint16:
        return (layer.astype(np.uint32) << 16).view(np.float32)
    return layer.astype(np.float32)


def _difference(name: str, stored: NDArray[np.float32], live: NDArray[np.float32]) -> LayerDifference:
    difference = stored - live
    norm = float(np.linalg.norm(live)) or 1.0
    cosine = float(np.vdot(stored, live)) / ((float(np.linalg.norm(stored)) or 1.0) * norm)
    tokens = np.linalg.norm(live, axis=-1)
    by_token = np.linalg.norm(difference, axis=-1) / np.maximum(tokens, tokens.mean() or 1.0)
    return LayerDifference(
        layer=name,
        max_abs=float(np.abs(difference).max()),
        relative=float(np.linalg.norm(difference)) / norm,
        worst_token=float(by_token.max()),
        cosine=cosine,
    )


def unexplained(
    live_tokens: tuple[int, ...],
    live_logprobs: tuple[float, ...],
    live_margins: tuple[float, ...],
    logprobs: tuple[float, ...],
    best_tokens: tuple[int, ...],
    tolerance: float,
) -> str | None:
    """Say where batched decoding under live's tokens parts from live beyond rounding, ``None`` if nowhere.

    Another best token is explained only when live's own winning margin there is within the tolerance.
    """
    if len(logprobs) != len(live_tokens):
        return f"{len(logprobs)} positions against {len(live_tokens)} live"
    for position, live_logprob in enumerate(live_logprobs):
        distance = abs(logprobs[position] - live_logprob)
        if not distance <= tolerance:
            return f"token {position}: log-probability {distance:.3g} away from live"
        if best_tokens[position] != live_tokens[position] and live_margins[position] > tolerance:
            return f"token {position}: another token wins, live's margin is {live_margins[position]:.3g}"
    return None
