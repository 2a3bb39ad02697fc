"""Slots are used again and prefixes read in place without a trace of who was there before; controls fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from asked_live import Asked

from cache.base.home import Home
from infer.attention import Readers, attend
from infer.canary import copies_prefixes
from infer.decoding import DecodeBatch
from infer.kv_cache import KVRow
from infer.limits import BatchLimits
from infer.prefixes import SharedPrefix
from infer.request import Request
from infer.sampling import Sampling
from infer.scheduler import InFlightLimit
from infer.slots import SlotKVCache, Slots
from infer.tokenizer import ImageSpan, PromptTokens

Patch = pytest.MonkeyPatch
LIMITS = BatchLimits(max_num_seqs=5, prefill_batch_size=3, prefill_step_size=33)


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("slots"), 3)


@pytest.fixture(scope="module")
def questions(asked: Asked) -> list[Request]:
    """Five of every frame, of several lengths, in 2 to 8 tokens: slots change hands at every step."""
    return [replace(r, sampling=Sampling(max_tokens=2 + r.id * 5 % 7)) for r in asked.questions(5)]


def _wrong(asked: Asked, questions: list[Request], limits: BatchLimits = LIMITS) -> int:
    tokens = asked.run(questions, limits).tokens(questions)
    return sum(one != other for one, other in zip(tokens, asked.want(questions), strict=True))


@pytest.mark.parametrize("copy_prefixes", [False, True], ids=["in place", "copied"])
def test_slots_that_change_hands_at_every_step_give_live_answers(
    asked: Asked, questions: list[Request], copy_prefixes: bool, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(asked.engine, "copy_prefixes", copy_prefixes)
    ended = asked.run(questions, LIMITS)
    assert ended.tokens(questions) == asked.want(questions)
    assert ended.stats.num_images == len(asked.frames)


def _see_what_was_there_before(patch: Patch) -> None:
    right = Slots.begin_step

    def unmasked(self: Slots) -> None:
        right(self)
        self.mask = None

    patch.setattr(Slots, "begin_step", unmasked)


def _write_into_a_slot_in_use(patch: Patch) -> None:
    right = SlotKVCache.put
    patch.setattr(SlotKVCache, "put", lambda self, slot, row: right(self, max(0, slot - 1), row))


def _read_the_prefix_of_another_frame(patch: Patch) -> None:
    right = SharedPrefix.in_place
    kept: dict[int, SharedPrefix] = {}

    def another(self: SharedPrefix, layer: int) -> KVRow:
        kept.setdefault(id(self), self)
        alike = [one for one in kept.values() if one.num_in_place == self.num_in_place]
        return right(alike[0], layer)

    patch.setattr(SharedPrefix, "in_place", another)


def _read_a_token_less(patch: Patch) -> None:
    right = SharedPrefix.in_place
    patch.setattr(
        SharedPrefix, "in_place", lambda self, layer: right(self, layer).between(0, self.num_in_place - 1)
    )


def _forget_the_prefix_in_positions(patch: Patch) -> None:
    right = Slots.begin_step

    def shorter(self: Slots) -> None:
        right(self)
        self.row_lengths = self.ends

    patch.setattr(Slots, "begin_step", shorter)


@pytest.mark.parametrize(
    "fault",
    [
        _see_what_was_there_before,
        _write_into_a_slot_in_use,
        _read_the_prefix_of_another_frame,
        _read_a_token_less,
        _forget_the_prefix_in_positions,
    ],
)
def test_a_fault_in_slots_or_prefixes_gives_other_answers(
    fault: Callable[[Patch], None], asked: Asked, questions: list[Request], monkeypatch: Patch
) -> None:
    fault(monkeypatch)
    assert _wrong(asked, questions) > 0


def test_a_row_that_joins_or_ends_copies_nobody_elses_keys(
    asked: Asked, questions: list[Request], monkeypatch: Patch
) -> None:
    resized: list[tuple[int, int]] = []
    right = DecodeBatch._resize

    def noted(self: DecodeBatch, kept: list[int], num_slots: int, *more: Any) -> None:
        resized.append((len(kept), num_slots))
        right(self, kept, num_slots, *more)

    monkeypatch.setattr(DecodeBatch, "_resize", noted)
    many = [replace(r, sampling=Sampling(max_tokens=3 + r.id % 5)) for r in questions]
    asked.run(many, LIMITS)
    growing = [num_slots for kept, num_slots in resized if num_slots > kept]
    assert len(resized) <= 6
    assert len(growing) <= LIMITS.max_num_seqs  # type: ignore[operator]


def _prefix(num_tokens: int, seed: int) -> SharedPrefix:
    prompt = PromptTokens(tuple(range(num_tokens)), (ImageSpan(0, num_tokens, (1, 2, 2)),))
    keys, values = (mx.random.normal((1, 2, num_tokens, 16), key=mx.random.key(seed + n)) for n in range(2))
    return SharedPrefix(prompt, (KVRow(keys, values),), num_tokens, 0)


@pytest.mark.parametrize(("length", "block"), [(1, 1024), (3, 1024), (3, 4)])
def test_attention_in_two_parts_is_attention_over_both(
    length: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.attention._BLOCK", block)
    prefixes = [_prefix(7, 10), None, _prefix(5, 20), None]
    prefixes[3] = prefixes[0]
    num_own = 6
    queries = mx.random.normal((4, 6, length, 16), key=mx.random.key(1))
    own = KVRow(*(mx.random.normal((4, 2, num_own, 16), key=mx.random.key(n)) for n in (2, 3)))
    seen = (
        np.tril(np.ones((length, num_own), bool), num_own - length)[None]
        & (np.arange(num_own) >= np.array([0, 1, 2, 0])[:, None])[:, None]
    )
    got = attend(queries, own, Readers(prefixes), 0, 0.25, mx.array(seen[:, None]))
    for row, prefix in enumerate(prefixes):
        before = KVRow(own.keys[:1, :, :0], own.values[:1, :, :0]) if prefix is None else prefix.in_place(0)
        keys, values = (
            mx.concatenate([one, other[row : row + 1]], axis=2)
            for one, other in ((before.keys, own.keys), (before.values, own.values))
        )
        mask = np.concatenate([np.ones((length, before.keys.shape[2]), bool), seen[row]], axis=1)
        want = mx.fast.scaled_dot_product_attention(
            queries[row : row + 1], keys, values, scale=0.25, mask=mx.array(mask)
        )
        np.testing.assert_allclose(np.array(got[row]), np.array(want[0]), atol=1e-5)


def test_more_are_let_in_as_long_as_they_make_more_tokens_a_second() -> None:
    limit = InFlightLimit(None)
    seen = []
    for _ in range(60):
        seen.append(limit.num)
        limit.stepped(limit.num, max(1.0, limit.num / 32))  # from 32 in flight on, a step costs what it adds
    assert seen[0] == 8
    assert limit.num in (32, 64)
    assert InFlightLimit(3).num == 3


def test_a_number_that_is_told_stays() -> None:
    limit = InFlightLimit(4)
    for _ in range(20):
        limit.stepped(4, 1.0)
    assert limit.num == 4


def test_steps_that_are_not_full_say_nothing() -> None:
    limit = InFlightLimit(None)
    for _ in range(50):
        limit.stepped(7, 1.0)
    assert limit.num == 8


def test_as_many_as_are_worth_it_give_the_same_answers(asked: Asked, questions: list[Request]) -> None:
    assert _wrong(asked, questions, BatchLimits()) == 0


def test_the_faster_way_to_read_prefixes_is_timed_once(asked: Asked, tmp_path: Path) -> None:
    tried: list[bool] = []

    def copies_are_faster() -> bool:
        tried.append(asked.engine.copies_are_faster())
        return True

    shape = asked.engine.model.attention_shape
    assert copies_prefixes(Home(tmp_path), shape, copies_are_faster)
    assert copies_prefixes(Home(tmp_path), shape, copies_are_faster)
    assert len(tried) == 1
    assert not copies_prefixes(Home(tmp_path), f"{shape} wider", lambda: False)
