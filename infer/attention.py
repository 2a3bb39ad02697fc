"""Attention of rows that read a prefix together: over it at once, and over what each has of its own.

Both have one softmax, computed in float32 and rounded where MLX's own attention on this device rounds,
so that answers in 16 bits are those of live encoding, too.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from infer.kv_cache import KVRow
from infer.prefixes import SharedPrefix

_BLOCK = 512  # queries whose scores over a prefix are held at once
_Rounding = Callable[[mx.array], mx.array]


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
        order += [row for row, prefix in enumerate(prefixes) if prefix is None]
        self.order = mx.array(order, dtype=mx.int32)
        self.place = mx.argsort(self.order)

    def __bool__(self) -> bool:
        return bool(self.groups)


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
    rounded = _rounding(queries.dtype)
    scaled = _scaled(queries, scale, rounded)
    grouped = scaled.reshape(batch, num_kv_heads, num_heads // num_kv_heads * length, head_dim)
    scores = _scores(grouped, own, rounded)
    if mask is not None:
        by_position = scores.reshape(batch, num_kv_heads, -1, length, scores.shape[-1])
        scores = mx.where(mask[:, :, None], by_position, -math.inf).reshape(scores.shape)
    _, of_own = _weights(scores)
    sums, values = _shared(grouped, of_own, readers, layer, rounded, is_prefill=length > 1)
    values = values + _weighed(mx.exp(scores - sums.top), sums, own, rounded)
    return values.astype(queries.dtype).reshape(queries.shape)


class _Sums(NamedTuple):
    """Each query's greatest score and sum of exponentials, float32 ``(batch, num_kv_heads, queries, 1)``."""

    top: mx.array
    total: mx.array


def _scaled(queries: mx.array, scale: float, rounded: _Rounding | None) -> mx.array:
    if rounded is None:
        return queries.astype(mx.float32) * scale
    return rounded(queries.astype(mx.float32) * rounded(mx.array(scale)))


def _scores(queries: mx.array, row: KVRow, rounded: _Rounding | None) -> mx.array:
    scores = queries @ row.keys.astype(mx.float32).swapaxes(-1, -2)
    return scores if rounded is None else rounded(scores)


def _weights(scores: mx.array, others: _Sums | None = None) -> tuple[mx.array, _Sums]:
    """Return exponentials of scores, not divided by their sum yet, which is of ``others`` beside them, too.

    As FlashAttention (arXiv 2205.14135) goes from block to block.
    """
    top = mx.max(scores, axis=-1, keepdims=True)
    if others is not None:
        top = mx.maximum(top, others.top)
    weights = mx.exp(scores - top)
    total = mx.sum(weights, axis=-1, keepdims=True)
    if others is not None:
        total = total + others.total * mx.exp(others.top - top)
    return weights, _Sums(top, total)


def _weighed(weights: mx.array, sums: _Sums, row: KVRow, rounded: _Rounding | None) -> mx.array:
    values = row.values.astype(mx.float32)
    if rounded is None:
        return weights @ values / sums.total
    return rounded(weights / sums.total) @ values


def _shared(
    queries: mx.array,
    own: _Sums,
    readers: Readers,
    layer: int,
    rounded: _Rounding | None,
    *,
    is_prefill: bool,
) -> tuple[_Sums, mx.array]:
    """Attend to the prefixes, each for all of its readers at once; rows without one see nothing.

    Returns the sums over prefix and ``own`` columns, and the prefix's share of the values.
    """
    num_kv_heads, num_queries = queries.shape[1:3]
    ordered, begin = [x[readers.order] for x in (queries, *own)], 0
    parts: list[list[mx.array]] = []
    done: mx.array | None = None
    for prefix, num_rows in readers.groups:
        rows = [
            x[begin : begin + num_rows].swapaxes(0, 1).reshape(1, num_kv_heads, num_rows * num_queries, -1)
            for x in ordered
        ]
        of_blocks = []
        for at in range(0, num_rows * num_queries, _BLOCK):
            block, *sums = (x[:, :, at : at + _BLOCK] for x in rows)
            if is_prefill and done is not None:  # one after the other: the scores of all would take gigabytes
                block = mx.depends(block, done)
            row = prefix.in_place(layer)
            weights, joined = _weights(_scores(block, row, rounded), _Sums(*sums))
            done = _weighed(weights, joined, row, rounded)
            of_blocks.append([*joined, done])
        each = of_blocks[0]
        if len(of_blocks) > 1:
            each = [mx.concatenate(list(of), axis=2) for of in zip(*of_blocks, strict=True)]
        parts.append([x.reshape(num_kv_heads, num_rows, num_queries, -1).swapaxes(0, 1) for x in each])
        begin += num_rows
    without = [x[begin:] for x in ordered]
    parts.append([*without[1:], mx.zeros_like(without[0])])
    top, total, values = (mx.concatenate(list(of))[readers.place] for of in zip(*parts, strict=True))
    return _Sums(top, total), values


@cache
def _rounding(dtype: mx.Dtype) -> _Rounding | None:
    """Return how MLX's own attention rounds scores and weights on this device; None where it does not.

    What runs on a CPU rounds to ``dtype``, kernels of GPUs do not: both are tried beside it.
    """

    def rounded(x: mx.array) -> mx.array:
        return x.astype(dtype).astype(mx.float32)

    queries, keys, values = (
        mx.random.normal((1, 1, 256, 64), key=mx.random.key(number)).astype(dtype) for number in range(3)
    )
    row, queries = KVRow(keys, values), queries[:, :, :1]
    wanted = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)

    def distance(rounded: _Rounding | None) -> float:
        weights, sums = _weights(_scores(_scaled(queries, 1.0, rounded), row, rounded))
        found = _weighed(weights, sums, row, rounded).astype(dtype)
        return float(mx.mean(mx.abs((found - wanted).astype(mx.float32))))

    return None if dtype == mx.float32 else min((None, rounded), key=distance)
