"""Attention of rows that read a prefix together: over it at once, and over what each has of its own.

Both have one softmax, computed in float32 and rounded where MLX's own attention on this device rounds,
so that answers in 16 bits are those of live encoding, too.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx

from infer.kv_cache import KVRow
from infer.prefixes import SharedPrefix

_BLOCK = 512  # queries whose scores over prefixes are held at once
_Rounding = Callable[[mx.array], mx.array]
_Part = tuple[KVRow | None, int, int]  # what the queries [begin, end) read in place


class Readers:
    """Which rows of a batch read which prefix, alike in all layers."""

    def __init__(self, prefixes: Sequence[SharedPrefix | None]) -> None:
        """Group rows by prefix; ``prefixes`` has one for each row, or ``None``."""
        rows: dict[SharedPrefix | None, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            rows.setdefault(prefix, []).append(row)
        self._groups = [(prefix, len(group)) for prefix, group in rows.items()]
        self._order = mx.array([row for group in rows.values() for row in group], dtype=mx.int32)
        self._place = mx.argsort(self._order)

    def __bool__(self) -> bool:
        return any(prefix is not None for prefix, _ in self._groups)

    def together(self, x: mx.array) -> mx.array:
        """Put rows one below the other, those of a prefix together.

        ``x`` ``(batch, num_kv_heads, queries, n)`` becomes ``(1, num_kv_heads, batch * queries, n)``.
        """
        return x[self._order].swapaxes(0, 1).reshape(1, x.shape[1], -1, x.shape[3])

    def apart(self, x: mx.array) -> mx.array:
        """Undo ``together``."""
        return x.reshape(x.shape[1], len(self._order), -1, x.shape[3]).swapaxes(0, 1)[self._place]

    def blocks(self, num_queries: int, layer: int) -> list[list[_Part]]:
        """Return what the queries of rows together read in a layer, ``num_queries`` a row, block by block."""
        blocks: list[list[_Part]] = [[]]
        begin = 0
        for prefix, num_rows in self._groups:
            row = None if prefix is None else prefix.in_place(layer)
            group_end = begin + num_rows * num_queries
            while begin < group_end:
                if begin == len(blocks) * _BLOCK:
                    blocks.append([])
                end = min(group_end, len(blocks) * _BLOCK)
                blocks[-1].append((row, begin, end))
                begin = end
        return blocks


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
    batch, _, length, head_dim = queries.shape
    num_kv_heads = own.keys.shape[1]
    rounded = _rounding(queries.dtype)
    grouped = _scaled(queries, scale, rounded).reshape(batch, num_kv_heads, -1, head_dim)
    scores = _scores(grouped, own, rounded)
    if mask is not None:
        by_position = scores.reshape(batch, num_kv_heads, -1, length, scores.shape[-1])
        scores = mx.where(mask[:, :, None], by_position, -math.inf).reshape(scores.shape)
    together, of_own = readers.together(grouped), readers.together(scores)
    values: list[mx.array] = []
    weights: list[mx.array] = []
    for block in readers.blocks(grouped.shape[2], layer):
        if length > 1 and values:  # one after the other: the scores of a whole prefill would take gigabytes
            together = mx.depends(together, values[-1])
        found, of_block = _over_prefixes(together, of_own, block, rounded)
        values.append(found)
        weights.append(of_block)
    over_prefixes, own_weights = (readers.apart(mx.concatenate(each, axis=2)) for each in (values, weights))
    both = over_prefixes + own_weights @ own.values.astype(mx.float32)
    return both.astype(queries.dtype).reshape(queries.shape)


def _over_prefixes(
    queries: mx.array, of_own: mx.array, block: Sequence[_Part], rounded: _Rounding | None
) -> tuple[mx.array, mx.array]:
    """Return what a block of queries finds in the prefixes, and its weights of the own columns.

    ``queries`` and the scores ``of_own`` are those of all rows together. Only two products are of one prefix:
    on small models and on GPUs a step costs what it has of operations.
    """
    num_columns = max((row.keys.shape[2] for row, _, _ in block if row is not None), default=0)
    num_kv_heads, head_dim = queries.shape[1], queries.shape[3]
    scores, values = list[mx.array](), list[mx.array]()
    for row, begin, end in block:
        if row is None:
            scores.append(mx.full((1, num_kv_heads, end - begin, num_columns), -math.inf))
            continue
        found = _scores(queries[:, :, begin:end], row, rounded)
        if lacking := num_columns - found.shape[3]:
            found = mx.pad(found, [(0, 0), (0, 0), (0, 0), (0, lacking)], constant_values=-math.inf)
        scores.append(found)
    first, last = block[0][1], block[-1][2]
    joined = mx.concatenate([mx.concatenate(scores, axis=2), of_own[:, :, first:last]], axis=3)
    weights = _weights(joined, rounded)
    for row, begin, end in block:
        if row is None:
            values.append(mx.zeros((1, num_kv_heads, end - begin, head_dim)))
            continue
        of_row = weights[:, :, begin - first : end - first, : row.values.shape[2]]
        values.append(of_row @ row.values.astype(mx.float32))
    return mx.concatenate(values, axis=2), weights[:, :, :, num_columns:]


def _scaled(queries: mx.array, scale: float, rounded: _Rounding | None) -> mx.array:
    if rounded is None:
        return queries.astype(mx.float32) * scale
    return rounded(queries.astype(mx.float32) * rounded(mx.array(scale)))


def _scores(queries: mx.array, row: KVRow, rounded: _Rounding | None) -> mx.array:
    scores = queries @ row.keys.astype(mx.float32).swapaxes(-1, -2)
    return scores if rounded is None else rounded(scores)


def _weights(scores: mx.array, rounded: _Rounding | None) -> mx.array:
    weights = mx.softmax(scores, axis=-1, precise=True)
    return weights if rounded is None else rounded(weights)


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
        weights = _weights(_scores(_scaled(queries, 1.0, rounded), row, rounded), rounded)
        found = (weights @ row.values.astype(mx.float32)).astype(dtype)
        return float(mx.mean(mx.abs((found - wanted).astype(mx.float32))))

    return None if dtype == mx.float32 else min((None, rounded), key=distance)
