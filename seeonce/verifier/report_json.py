"""The report for machines: one JSON object, in which a figure that is no number is null."""

import json
import math
from dataclasses import asdict

from seeonce.verifier.report import Report

_Json = dict[str, "_Json"] | list["_Json"] | tuple["_Json", ...] | str | int | float | bool | None


def as_json_text(report: Report) -> str:
    """Return the report as JSON that every parser takes: Python's own NaN and Infinity are none."""
    return json.dumps(_finite(asdict(report)), allow_nan=False)


def _finite(value: _Json) -> _Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
