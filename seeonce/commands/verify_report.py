"""The report of verify-cache in words: as lines, as a page, as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields

from seeonce.verifier.report import Check, ControlResult, Level, ProvenanceDifference, Report, Tolerances

_PROBLEMS_SHOWN = 12
_PROVEN = {
    Level.bytes: "every byte of the entries and manifests checked is as it was written; whether live "
    "encoding gives the same was not checked",
    Level.embeddings: "the features checked are those of live encoding; answers were not checked",
    Level.outputs: "the features and answers checked are those of live encoding",
}

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
