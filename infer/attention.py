"""Attention of rows that read a prefix together: over it at once, and over what each has of its own.

Both are joined by one softmax, from the maximum and the sum of either (as blocks are in FlashAttention, arXiv
2205.14135). Maxima, sums and the joining are float32; products are of the compute type.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from infer.kv_cache import KVRow
from infer.prefixes import SharedPrefix

_BLOCK = 512  # queries whose scores over a prefix are held at once


class Readers:
    """Which rows of a batch read which prefix, alike in all layers."""

    def __init__(self, prefixes: Sequence[SharedPrefix | None]) -> None:
        """Group rows by prefix; ``prefixes`` has one for each row, or ``None``."""
        rows: dict[SharedPrefix, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                rows.setdefault(prefix, []).append(row)
        self.groups = [(prefix, len(group)) for prefix, group in rows.items()]
        order = [row for group in rows.values() for row in group]
        self.order = mx.array(order, dtype=mx.int32)
        place = dict(zip(order, range(len(order)), strict=True))
        self.place = mx.array([place.get(row, len(order)) for row in range(len(prefixes))], dtype=mx.int32)
        self.all_read = len(order) == len(prefixes)

    def __bool__(self) -> bool:
        return bool(self.groups)


@dataclass(frozen=True, slots=True)
class _Part:
    """Attention over some of a row's columns: the greatest score, the sum of exponentials, their product.

    float32 ``(batch, num_kv_heads, queries, 1)``, the same, and ``(batch, num_kv_heads, queries, head_dim)``.
    """

    top: mx.array
    total: mx.array
    values: mx.array


def attend(
    queries: mx.array,
    own: KVRow,
    readers: Readers,
    layer: int,
    scale: float,
    mask: mx.array | str | None,
) -> mx.array:
    """Attend to the prefix that a row reads and to its ``own`` columns; return what SDPA over both gives.

    ``queries`` ``(batch, num_heads, length, head_dim)``; ``mask`` ``(batch, 1, length, columns)`` says which
    of the own columns may be seen, every query at least one. All of a prefix is seen.
    """
    if not readers:
        return mx.fast.scaled_dot_product_attention(queries, own.keys, own.values, scale=scale, mask=mask)
    if isinstance(mask, str):
        raise ValueError(f"beside a prefix a mask must be an array, not {mask!r}")
    batch, num_heads, length, head_dim = queries.shape
    num_kv_heads = own.keys.shape[1]
    grouped = (queries * scale).reshape(batch, num_kv_heads, num_heads // num_kv_heads * length, head_dim)
    shared = _shared(grouped, readers, layer, is_prefill=length > 1)
    part = _part(grouped, own, mask, length)
    top = mx.maximum(part.top, shared.top)
    of_own, of_shared = mx.exp(part.top - top), mx.exp(shared.top - top)
    values = part.values * of_own + shared.values * of_shared
    total = part.total * of_own + shared.total * of_shared
    return (values / total).astype(queries.dtype).reshape(queries.shape)


def _part(queries: mx.array, row: KVRow, mask: mx.array | None = None, length: int = 1) -> _Part:
    scores = (queries @ row.keys.swapaxes(-1, -2)).astype(mx.float32)
    if mask is not None:
        shape = scores.shape
        by_position = scores.reshape(*shape[:2], -1, length, shape[3])
        scores = mx.where(mask[:, :, None], by_position, -math.inf).reshape(shape)
    top = mx.max(scores, axis=-1, keepdims=True)
    weights = mx.exp(scores - top)
    values = (weights.astype(queries.dtype) @ row.values).astype(mx.float32)
    return _Part(top, mx.sum(weights, axis=-1, keepdims=True), values)


def _shared(queries: mx.array, readers: Readers, layer: int, *, is_prefill: bool) -> _Part:
    """Attend to the prefixes, each for all of its readers at once; rows without one see nothing."""
    _, num_kv_heads, num_queries, head_dim = queries.shape
    ordered, begin = queries[readers.order], 0
    parts: list[list[mx.array]] = []
    done: mx.array | None = None
    for prefix, num_rows in readers.groups:
        rows = ordered[begin : begin + num_rows].swapaxes(0, 1).reshape(1, num_kv_heads, -1, head_dim)
        of_blocks = []
        for at in range(0, rows.shape[2], _BLOCK):
            block = rows[:, :, at : at + _BLOCK]
            if is_prefill and done is not None:  # one after the other: the scores of all would take gigabytes
                block = mx.depends(block, done)
            part = _part(block, prefix.in_place(layer))
            of_blocks.append([part.top, part.total, part.values])
            done = part.values
        each = of_blocks[0]
        if len(of_blocks) > 1:
            each = [mx.concatenate(list(of), axis=2) for of in zip(*of_blocks, strict=True)]
        parts.append([x.reshape(num_kv_heads, num_rows, num_queries, -1).swapaxes(0, 1) for x in each])
        begin += num_rows
    if not readers.all_read:
        none = mx.zeros((1, num_kv_heads, num_queries, 1))
        parts.append([none - math.inf, none, mx.zeros((1, num_kv_heads, num_queries, head_dim))])
    top, total, values = (mx.concatenate(list(of))[readers.place] for of in zip(*parts, strict=True))
    return _Part(top, total, values)
