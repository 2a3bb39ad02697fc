"""What we rely on in mlx-vlm, held so that a new version cannot change it unseen."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import Live, draw_noise
from mlx_vlm.utils import prepare_inputs
from tiny_checkpoint import Tiny, write_checkpoint

from checkpoint.config import read_checkpoint
from infer.kv_cache import KVRow, RowsRecurrentState
from infer.model import DenseDeepstackModel
from infer.prefix_trial import copies_are_faster
from infer.slots import SlotKVCache, Slots
from infer.tokenizer import ImageSpan, mrope_positions


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536)))


def _wrapped(live: Live) -> DenseDeepstackModel:
    config = read_checkpoint(Path(live.model.model_path))
    return DenseDeepstackModel(live.model.language_model, config.text.layers)


class SpyCache:
    """A cache of two slots that notes what is asked of it."""

    def __init__(self, slots: Slots) -> None:
        self.cache = SlotKVCache(slots, 0)
        self.cache.resize([], 2, 8, KVRow(mx.zeros((1, 2, 1, 16)), mx.zeros((1, 2, 1, 16))))
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.asked.add(name)
        return getattr(self.cache, name)


@pytest.mark.parametrize("tiny", [Tiny(), Tiny(moe=True)], ids=["dense", "moe"])
def test_attention_asks_a_cache_for_its_update_and_no_more(tiny: Tiny, tmp_path: Path) -> None:
    model = _wrapped(Live(write_checkpoint(tmp_path, tiny)))
    slots = Slots()
    slots.lengths, slots.prefixes = [3, 5], [None, None]
    slots.begin_step()
    caches = [SpyCache(slots) for _ in model.layers]
    model(mx.array([[1], [2]]), cache=caches)
    assert caches[0].asked <= {"row_lengths", "offset", "make_mask", "update_and_fetch", "attend"}
    assert "attend" in caches[1].asked
    assert caches[1].asked <= {"offset", "update_and_fetch", "attend"}


@pytest.mark.parametrize("family", ["plain", "qwen3_5"])
def test_attention_of_each_family_has_a_cache_attend_that_can(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, right = _wrapped(Live(request.getfixturevalue(family))), SlotKVCache.attend
    asked: list[tuple[int, ...]] = []

    def noted(self: SlotKVCache, queries: mx.array, *more: Any) -> mx.array:
        asked.append(queries.shape)
        return right(self, queries, *more)

    monkeypatch.setattr(SlotKVCache, "attend", noted)
    copies_are_faster(model)
    assert {shape[0] for shape in asked} == {16}


@pytest.fixture(scope="module")
def delta_net(qwen3_5: Path) -> Any:
    """The first layer of a Qwen3.5."""
    return Live(qwen3_5).model.language_model.model.layers[0].linear_attn


class SpyState(RowsRecurrentState):
    """A recurrent state that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__([0])
        self.asked: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "asked":
            self.asked.add(name)
        return super().__getattribute__(name)


def test_a_delta_net_asks_a_state_for_its_updates_and_no_more(delta_net: Any) -> None:
    state = SpyState()
    delta_net(mx.random.normal((1, 5, 64)), None, state)
    assert state.asked <= {"lengths", "update_window", "update_recurrent", "advance", "window", "recurrent"}
    assert state.recurrent is not None
    assert state.recurrent.dtype == mx.float32


def test_a_delta_net_convolves_what_update_window_left_in_its_inputs(delta_net: Any) -> None:
    class Emptied(RowsRecurrentState):
        def update_window(self, index: int, inputs: mx.array, width: int, lengths: None = None) -> None:
            inputs[:] = mx.zeros_like(inputs)

    x = mx.random.normal((1, 5, 64), key=mx.random.key(0))
    assert np.array(delta_net(x, None, RowsRecurrentState([0]))).any()
    assert not np.array(delta_net(x, None, Emptied([0]))).any()


def test_a_masked_column_leaves_a_recurrent_state_as_it_is(delta_net: Any) -> None:
    x = mx.random.normal((1, 5, 64), key=mx.random.key(0))
    padded, plain = RowsRecurrentState([3], starts=[3]), RowsRecurrentState([0])
    delta_net(mx.concatenate([mx.ones((1, 3, 64)), x], axis=1), padded.make_mask(8), padded)
    delta_net(x, None, plain)
    for one, other in zip(padded.state, plain.state, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_positions_are_those_of_get_rope_index(live: Live, tmp_path: Path, count: int) -> None:
    images = [str(path) for path in sorted(draw_noise(tmp_path, count).iterdir())]
    formatted = "ab" + "cd<|vision_start|><|image_pad|><|vision_end|>ef" * count + "gh"
    inputs = prepare_inputs(
        live.processor,
        images=images,
        prompts=formatted,
        add_special_tokens=False,
        image_token_index=live.model.config.image_token_index,
    )
    ids = inputs["input_ids"].tolist()[0]
    grids = [(int(t), int(h), int(w)) for t, h, w in inputs["image_grid_thw"].tolist()]
    want, delta = live.model.language_model.get_rope_index(inputs["input_ids"], inputs["image_grid_thw"])
    spans = _spans(ids, grids, live.model.config.image_token_index)
    position_ids, rope_delta = mrope_positions(len(ids), spans, 2)
    np.testing.assert_array_equal(position_ids, np.array(want))
    assert rope_delta == int(delta.item())


def _spans(ids: list[int], grids: list[tuple[int, int, int]], image_token: int) -> tuple[ImageSpan, ...]:
    spans, at = [], 0
    for grid in grids:
        at = ids.index(image_token, at)
        spans.append(ImageSpan(at, grid[0] * grid[1] * grid[2] // 4, grid))
        at += spans[-1].num_tokens
    return tuple(spans)
