"""Answers as a table: CSV for spreadsheets, Parquet for data frames.

CSV cells that a spreadsheet would take for a formula get an apostrophe in front: the words come from a
model that read a screen, so from anybody. Parquet keeps every text as it is.
"""

import csv
import io
import json
from collections.abc import Sequence

from cache.base.errors import InputError
from seeonce.runs.run import Result

COLUMNS = (
    "recording", "frame", "timestamp_s", "source", "key", "prompt_id", "prompt", "text", "description",
    "activity", "apps", "topics", "finish_reason", "error", "prompt_tokens", "completion_tokens",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Cell = str | int | float | list[str] | None


def as_csv(answers: Sequence[Result]) -> bytes:
    """Return CSV (RFC 4180, UTF-8): a header, and a line for each answer; lists are JSON arrays."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for answer in answers:
        writer.writerow([_plain(cell) for cell in _cells(answer)])
    return text.getvalue().encode("utf-8")


def as_parquet(answers: Sequence[Result]) -> bytes:
    """Return a Parquet file; apps and topics are lists of strings.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            "--to parquet needs pyarrow: install seeonce with it, as in pip install 'seeonce[parquet]'"
        ) from error
    types = {"frame": pa.int64(), "timestamp_s": pa.float64(), "apps": pa.list_(pa.string())}
    types |= {"topics": types["apps"], "prompt_tokens": pa.int64(), "completion_tokens": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    columns = list(zip(*map(_cells, answers), strict=True)) or [()] * len(COLUMNS)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _cells(answer: Result) -> list[Cell]:
    """Return an answer's values in the order of ``COLUMNS``."""
    parsed, usage = answer.description, answer.usage
    cells: list[Cell] = [
        answer.recording, answer.frame, answer.timestamp_s, answer.source, answer.key, answer.prompt_id,
        answer.prompt, answer.text,
        None if parsed is None else parsed.description,
        None if parsed is None else parsed.activity,
        None if parsed is None else list(parsed.apps),
        None if parsed is None else list(parsed.topics),
        answer.finish_reason, answer.error, usage.prompt_tokens, usage.completion_tokens,
    ]  # fmt: skip
    return [_storable(cell) for cell in cells]


def _storable(cell: Cell) -> Cell:
    """Return text that UTF-8 can hold; half of a surrogate pair becomes a question mark."""
    if isinstance(cell, list):
        return [text.encode("utf-8", "replace").decode("utf-8") for text in cell]
    return cell.encode("utf-8", "replace").decode("utf-8") if isinstance(cell, str) else cell


def _plain(cell: Cell) -> str | int | float | None:
    """Return what a CSV cell holds; no text of it begins as a formula does."""
    text = json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell
    return f"'{text}" if isinstance(text, str) and text.lstrip(" ").startswith(_FORMULA) else text
