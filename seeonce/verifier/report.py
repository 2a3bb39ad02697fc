"""What verify-cache reports, and how it is printed: as lines, as a page, as JSON.

``docs/verify-report.schema.json`` describes the JSON.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
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


_Json = dict[str, "_Json"] | list["_Json"] | tuple["_Json", ...] | str | int | float | bool | None


def as_json_text(report: Report) -> str:
    """Return the report as JSON that every parser takes: without Python's own NaN and Infinity."""
    return json.dumps(_finite(asdict(report)), allow_nan=False)


def _finite(value: _Json) -> _Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


_PROBLEMS_SHOWN = 12
_PROVEN = {
    Level.bytes: "every byte of the entries and manifests checked is as it was written; whether live "
    "encoding gives the same was not checked",
    Level.embeddings: "the features checked are those of live encoding; answers were not checked",
    Level.outputs: "the features and answers checked are those of live encoding",
}


def verdict_words(report: Report) -> str:
    """Say in one sentence what was proved."""
    if not report.equal:
        return "NOT equal; see above"
    if not report.controls_caught:
        return "nothing found to differ, but the controls FAILED: what they would have shown is not proved"
    if not report.complete:
        return "nothing found to differ, but not all could be checked; see above"
    proven = _PROVEN[Level(report.level)]
    if any(check.logprobs is not None and check.logprobs.num_near_ties for check in report.checks):
        proven += " but for near-ties"
    if report.tolerances is not None and report.tolerances.given:
        proven += ", within the tolerance that was given"
    elif any(not layer.exact for check in report.checks for layer in check.layers):
        proven += ", within the tolerance that the report names"
    return proven


def terminal_lines(report: Report) -> list[str]:
    """Return the report as it is printed: a line for each level, what is wrong, and the verdict."""
    lines = [f"{check.name:<11} {_word(check)}: {check.words}" for check in report.checks]
    lines += [f"  {problem}" for check in report.checks for problem in _shown(check)]
    lines += [f"  not checked: {reason}" for check in report.checks for reason in check.unchecked]
    lines += [f"  {line}" for line in map(provenance_words, report.provenance)]
    if report.tolerances is not None and (report.tolerances.given or report.provenance):
        lines.append(f"  {tolerance_words(report.tolerances)}")
    lines += _control_lines(report)
    if any(check.name == "bytes" and not check.equal for check in report.checks):
        lines.append(
            "  Nothing was moved: seeonce store repair puts damaged entries away and encodes them again."
        )
    return [*lines, f"{report.recording}: {verdict_words(report)}."]


def markdown(report: Report) -> str:
    """Return the report as a page, every problem in it."""
    parts = [f"# verify-cache: {report.recording}", f"**{verdict_words(report)}.**"]
    rows = [(check.name, _word(check), check.words) for check in report.checks]
    parts.append(_table(("level", "result", "what was checked"), rows))
    for check in report.checks:
        found = [*check.problems, *(f"not checked: {reason}" for reason in check.unchecked)]
        if found:
            parts += [f"## {check.name}: what is wrong", "\n".join(f"- {line}" for line in found)]
        if check.layers:
            parts += ["## Features by layer, stored against live", _layer_table(check)]
    if report.here is not None:
        here = [(field.name, str(getattr(report.here, field.name))) for field in fields(report.here)]
        parts += ["## What computes here", _table(("field", "value"), here)]
        differences = [f"- {provenance_words(difference)}" for difference in report.provenance]
        parts.append("\n".join(differences) or "Every entry was computed by the same.")
    if report.tolerances is not None:
        parts += ["## Tolerances", tolerance_words(report.tolerances) + "."]
    if report.controls:
        rows = [(control.name, _control_word(control), control.words) for control in report.controls]
        parts += ["## Controls", _table(("fault put into a copy", "result", "how"), rows)]
    parts.append(f"Model {report.model or 'not asked'}, encoder {report.encoder_id or 'not asked'}.")
    return "\n\n".join(parts) + "\n"


def provenance_words(difference: ProvenanceDifference) -> str:
    """Say one difference of provenance in words."""
    stored = difference.stored or "not recorded"
    plural = "entry was" if difference.num_entries == 1 else "entries were"
    return (
        f"{difference.num_entries} {plural} computed with {difference.field} {stored}, here it is "
        f"{difference.here or 'not known'}"
    )


def tolerance_words(allowed: Tolerances) -> str:
    """Say what counted as equal."""
    same = f"within {allowed.features_same:g}" if allowed.features_same else "bit for bit"
    return (
        f"what counted as equal{' (given)' if allowed.given else ''}: features {same} where the same "
        f"versions and device computed them, else within {allowed.features_other:g} relative; "
        f"log-probabilities within {allowed.logprob:g}, in the mean within {allowed.mean_logprob:g}"
    )


def _word(check: Check) -> str:
    if not check.equal:
        return "DIFFERS"
    return "equal" if check.num_checked else "unknown"


def _shown(check: Check) -> list[str]:
    more = len(check.problems) - _PROBLEMS_SHOWN
    lines = list(check.problems[:_PROBLEMS_SHOWN])
    return [*lines, f"… and {more} more in {check.name}; --json has all"] if more > 0 else lines


def _control_lines(report: Report) -> list[str]:
    if report.controls_problem is not None:
        return [f"controls    FAILED: {report.controls_problem}"]
    if not report.controls:
        return []
    applied = [control for control in report.controls if control.applied]
    num_caught = sum(control.caught for control in applied)
    caught = f"{num_caught} of {len(applied)} faults put into a copy were caught"
    lines = [f"controls    {caught}; the unchanged copy passes"]
    lines += [
        f"  {_control_word(control):<11} {control.name}: {control.words}" for control in report.controls
    ]
    return lines


def _control_word(control: ControlResult) -> str:
    if not control.applied:
        return "not applied"
    return "caught" if control.caught else "NOT CAUGHT"


def _layer_table(check: Check) -> str:
    rows = [
        (
            layer.layer,
            f"{layer.num_exact} of {layer.num_entries}",
            *(f"{value:.3g}" for value in (layer.max_abs, layer.mean_abs, layer.relative, layer.worst_token)),
            f"{layer.cosine:.8f}",
        )
        for layer in check.layers
    ]
    head = ("layer", "bit for bit", "max", "mean", "relative", "worst token", "cosine")
    return _table(head, rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
