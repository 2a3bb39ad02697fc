"""What verify-cache reports; ``docs/verify-report.schema.json`` describes its JSON."""

from dataclasses import dataclass
from enum import StrEnum

from cache.entry import Provenance

REPORT_SCHEMA = "seeonce verify-cache report, version 1"


class Level(StrEnum):
    """How much is proven; each level includes those before it."""

    bytes = "bytes"
    embeddings = "embeddings"
    outputs = "outputs"


class Against(StrEnum):
    """References beside the usual ones."""

    transformers = "transformers"
    mlx_vlm = "mlx-vlm"


@dataclass(frozen=True, slots=True)
class Confidence:
    """What a sample without a fault says of the whole: fewer than ``fewer_than`` are wrong."""

    percent: int
    num_checked: int
    num_total: int
    fewer_than: int
    unit: str


_WORST_TOKEN = 10
"""A token may lie this many times further away than its layer: one wrong token hides in a large layer."""


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer of one entry or several, stored against live; differences are of float32 values.

    ``relative`` and ``worst_token`` are norms of differences over norms of live values, the largest of
    any entry; ``cosine`` is the smallest of any entry.
    """

    layer: str
    num_entries: int
    num_exact: int
    max_abs: float
    mean_abs: float
    relative: float
    worst_token: float
    cosine: float

    @property
    def exact(self) -> bool:
        """Whether every bit of every entry agrees."""
        return self.num_exact == self.num_entries

    def within(self, tolerance: float) -> bool:
        """Tell whether the layer as a whole and each of its tokens is near enough."""
        if tolerance == 0:
            return self.exact
        return self.relative <= tolerance and self.worst_token <= _WORST_TOKEN * tolerance


@dataclass(frozen=True, slots=True)
class LogprobFigures:
    """Log-probabilities of live's most likely tokens, batched from the store against live one at a time.

    ``num_other_answers`` counts answers that leave live's at a near-tie of live, ``num_other_tokens``
    positions at which, after live's own tokens, another one would have won. ``max_abs`` is of the token
    taken; ``mean_abs`` over all positions and the eight tokens that live finds most likely at each, with
    ``mean_allowed`` its tolerance.
    """

    num_answers: int
    num_positions: int
    num_other_answers: int
    num_other_tokens: int
    max_abs: float
    mean_abs: float
    mean_allowed: float

    @property
    def num_near_ties(self) -> int:
        """How many divergences were explained, of answers handed out and of positions."""
        return self.num_other_answers + self.num_other_tokens


@dataclass(frozen=True, slots=True)
class Check:
    """One level: whether everything checked was equal, in words, and each problem in a line.

    ``unchecked`` names what was to be checked and could not be.
    """

    name: str
    equal: bool
    words: str
    num_checked: int
    num_total: int
    problems: tuple[str, ...]
    unchecked: tuple[str, ...] = ()
    confidence: Confidence | None = None
    layers: tuple[LayerFigures, ...] = ()
    logprobs: LogprobFigures | None = None


@dataclass(frozen=True, slots=True)
class ProvenanceDifference:
    """One field of what computed the entries that is not what computes here; empty means not recorded."""

    field: str
    stored: str
    here: str
    num_entries: int


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far apart still counts as equal. ``given`` tells whether the user changed any of them.

    ``features_same`` holds for entries that were computed by what computes here, ``features_other`` for
    all others, both relative to the norm of a layer; ``logprob`` for each position of an answer, and
    ``mean_logprob`` for the mean over all positions.
    """

    features_same: float
    features_other: float
    logprob: float
    mean_logprob: float
    given: bool


@dataclass(frozen=True, slots=True)
class ControlResult:
    """One fault that was put into a copy of the store, and which levels objected to it.

    ``applied`` is false where the recording or the checkpoint leaves no room for it; ``words`` says why.
    """

    name: str
    applied: bool
    caught: bool
    caught_by: tuple[str, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked of a recording or of the whole store, and whether all of it was equal.

    ``controls_problem`` says why controls prove nothing: they were not run, or the unchanged copy failed.
    """

    recording: str
    level: str
    equal: bool
    complete: bool
    checks: tuple[Check, ...]
    model: str | None = None
    encoder_id: str | None = None
    here: Provenance | None = None
    provenance: tuple[ProvenanceDifference, ...] = ()
    tolerances: Tolerances | None = None
    against: str | None = None
    controls: tuple[ControlResult, ...] = ()
    controls_problem: str | None = None
    schema: str = REPORT_SCHEMA

    @property
    def controls_caught(self) -> bool:
        """Whether every control that could be applied was objected to, and the unchanged copy was not."""
        return self.controls_problem is None and all(
            control.caught for control in self.controls if control.applied
        )

    @property
    def exit_code(self) -> int:
        """0 equal, 1 something differs or a control was not caught, 2 not all could be checked."""
        if not (self.equal and self.controls_caught):
            return 1
        return 0 if self.complete else 2
