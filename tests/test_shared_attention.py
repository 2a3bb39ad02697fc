"""Attention over a prefix that rows read together is MLX's own over a copy each, bit for bit in 16 bits."""

import mlx.core as mx
import pytest

from infer.attention import Readers, attend
from infer.kv_cache import KVRow
from infer.prefixes import SharedPrefix
from infer.tokenizer import ImageSpan, PromptTokens

NUM_COLUMNS, NUM_OWN, NUM_KV_HEADS = 70, 9, 2


def _drawn(seed: int, *shape: int, dtype: mx.Dtype) -> mx.array:
    return (2 * mx.random.normal(shape, key=mx.random.key(seed))).astype(dtype)


def _row(seed: int, num_rows: int, num_columns: int, head_dim: int, dtype: mx.Dtype) -> KVRow:
    shape = (num_rows, NUM_KV_HEADS, num_columns, head_dim)
    return KVRow(_drawn(seed, *shape, dtype=dtype), _drawn(seed + 1, *shape, dtype=dtype))


def _prefix(row: KVRow) -> SharedPrefix:
    image = ImageSpan(0, NUM_COLUMNS, (1, 2, 2 * NUM_COLUMNS))
    return SharedPrefix(PromptTokens((0,) * NUM_COLUMNS, (image,)), (row,), NUM_COLUMNS, 0)


@pytest.mark.parametrize("length", [1, 5], ids=["decode", "prefill"])
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_rows_over_a_prefix_attend_as_over_a_copy(dtype: mx.Dtype, head_dim: int, length: int) -> None:
    num_rows, scale = 4, head_dim**-0.5
    queries = _drawn(1, num_rows, 3 * NUM_KV_HEADS, length, head_dim, dtype=dtype)
    own = _row(2, num_rows, NUM_OWN, head_dim, dtype)
    prefixes = [_row(seed, 1, NUM_COLUMNS, head_dim, dtype) for seed in (4, 6)]
    reads = [1, None, 0, 1]
    shared = [_prefix(row) for row in prefixes]
    ends = mx.array([NUM_OWN - length - row % 2 for row in range(num_rows)])[:, None] + mx.arange(length)
    mask = (mx.arange(NUM_OWN) <= ends[..., None])[:, None]

    readers = Readers([None if which is None else shared[which] for which in reads])
    found = attend(queries, own, readers, 0, scale, mask)

    for row, which in enumerate(reads):
        copies = [own] if which is None else [prefixes[which], own]
        of_row = [
            each if each is not own else KVRow(own.keys[row : row + 1], own.values[row : row + 1])
            for each in copies
        ]
        keys, values = (
            mx.concatenate(list(of), axis=2) for of in zip(*(each.arrays for each in of_row), strict=True)
        )
        before = mx.ones((1, 1, length, keys.shape[2] - NUM_OWN), mx.bool_)
        seen = mx.concatenate([before, mask[row : row + 1]], axis=-1)
        wanted = mx.fast.scaled_dot_product_attention(
            queries[row : row + 1], keys, values, scale=scale, mask=seen
        )
        if dtype == mx.float32:
            assert mx.allclose(found[row : row + 1], wanted, rtol=1e-5, atol=1e-5)
        else:
            assert mx.mean(found[row : row + 1] == wanted) > 0.99
