"""Whether rows decode faster over one prefix together or a copy each, timed on one layer of attention."""

import time
from itertools import chain, repeat

import mlx.core as mx

from infer.kv_cache import KVRow
from infer.model import DenseDeepstackModel
from infer.prefill import RowsKVCache
from infer.prefixes import SharedPrefix
from infer.slots import SlotKVCache, Slots
from infer.tokenizer import ImageSpan, PromptTokens

_NUM_ROWS, _NUM_PREFIXES, _NUM_COLUMNS, _NUM_OWN = 16, 2, 2048, 64
_NUM_CALLS, _NUM_ROUNDS = 4, 4


def copies_are_faster(model: DenseDeepstackModel) -> bool:
    """Decode 16 rows over two prefixes of 2,048 tokens both ways; say whether copies took less time."""
    h: mx.array = model.decoder.embed_tokens(mx.zeros((_NUM_ROWS, 1), mx.int32))
    rows = RowsKVCache([0])
    _attention(model, h[:1], rows)
    like = rows.row(0, 1)
    in_place, copied = _slots(model, like, shared=True), _slots(model, like, shared=False)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for cache in chain.from_iterable(repeat((in_place, copied), _NUM_ROUNDS)):
        started, out = time.perf_counter(), h
        for _ in range(_NUM_CALLS):
            out = _attention(model, out, cache)
        mx.eval(out)
        seconds[cache is copied].append(time.perf_counter() - started)
    return min(seconds[True]) < min(seconds[False])


def _attention(model: DenseDeepstackModel, h: mx.array, cache: SlotKVCache | RowsKVCache) -> mx.array:
    positions = mx.zeros((3, h.shape[0], 1), mx.int32)
    layer = model.layers[model.attention_index].self_attn
    out: mx.array = layer(h, cache.make_mask(1), cache, positions, model.rotation_of(h, positions))
    return out


def _slots(model: DenseDeepstackModel, like: KVRow, *, shared: bool) -> SlotKVCache:
    """Fill slots with rows of two lengths that read prefixes, or have copies of them."""
    slots = Slots()
    more = 0 if shared else _NUM_COLUMNS
    slots.lengths = [_NUM_OWN + more - row % 2 for row in range(_NUM_ROWS)]
    slots.prefixes = [None] * _NUM_ROWS
    if shared:
        prefixes = [_prefix(model, like) for _ in range(_NUM_PREFIXES)]
        slots.prefixes = [prefixes[row % _NUM_PREFIXES] for row in range(_NUM_ROWS)]
    cache = SlotKVCache(slots, model.attention_index)
    cache.resize([], _NUM_ROWS, slots.num_columns, like)
    slots.begin_step()
    return cache


def _prefix(model: DenseDeepstackModel, like: KVRow) -> SharedPrefix:
    image = ImageSpan(0, _NUM_COLUMNS, (1, 2, 2 * _NUM_COLUMNS))
    row = KVRow(*(mx.repeat(each, _NUM_COLUMNS, axis=2) for each in like.arrays))
    prompt = PromptTokens((0,) * _NUM_COLUMNS, (image,))
    return SharedPrefix(prompt, (row,) * (model.attention_index + 1), _NUM_COLUMNS, 0)
