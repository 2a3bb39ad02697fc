"""How far apart still counts as equal, for each compute dtype. docs/verify.md says what was measured."""

from cache.errors import InputError
from seeonce.verifier.report import Tolerances

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
