"""What we rely on in mlx-vlm, held so that a new version cannot change it unseen."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import Live, draw_noise
from mlx_vlm.generate.ar import BatchGenerator, _is_sequence_aligned_prompt_kwarg
from mlx_vlm.utils import prepare_inputs
from tiny_checkpoint import Tiny, write_checkpoint

from infer.mlx_vlm_adapter import DenseDeepstackModel
from infer.positions import ImageSpan, mrope_positions


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536)))


def test_deepstack_and_positions_are_padded_merged_and_sliced_along_the_sequence() -> None:
    assert _is_sequence_aligned_prompt_kwarg("deepstack_visual_embeds", mx.zeros((1, 7, 3, 4)), 7)
    assert _is_sequence_aligned_prompt_kwarg("position_ids", mx.zeros((3, 1, 7)), 7)
    assert not _is_sequence_aligned_prompt_kwarg("rope_deltas", mx.zeros((1, 1)), 1)


def test_the_adapter_hides_what_would_lead_mlx_vlm_past_it(live: Live) -> None:
    model = DenseDeepstackModel(live.model.language_model)
    assert not hasattr(model, "language_model")
    assert not hasattr(model, "config")
    assert not hasattr(model, "make_cache")
    assert len(model.layers) == len(live.model.language_model.layers)


def test_a_prefill_batch_larger_than_the_free_slots_is_never_admitted(live: Live) -> None:
    generator = BatchGenerator(
        live.model.language_model, live.processor, completion_batch_size=1, prefill_batch_size=4
    )
    embeds = live.model.language_model.model.embed_tokens(mx.array([[1, 2, 3]]))
    generator.insert([[1, 2, 3]], 4, prompt_kwargs=[{"inputs_embeds": embeds}])
    assert all(generator.next() == ([], []) for _ in range(3))
    assert generator.has_work
    generator.close()


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
    got = mrope_positions(len(ids), _spans(ids, grids, live.model.config.image_token_index), 2)
    np.testing.assert_array_equal(got.position_ids, np.array(want))
    assert got.rope_delta == int(delta.item())


def _spans(ids: list[int], grids: list[tuple[int, int, int]], image_token: int) -> tuple[ImageSpan, ...]:
    spans, at = [], 0
    for grid in grids:
        at = ids.index(image_token, at)
        spans.append(ImageSpan(at, grid[0] * grid[1] * grid[2] // 4, grid))
        at += spans[-1].num_tokens
    return tuple(spans)
