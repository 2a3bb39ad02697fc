"""A sampled answer depends on its seed, frames and prompt, and on nothing else in the batch."""

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import PROMPTS, Encoded, draw_noise, encode_folder
from tiny_checkpoint import Tiny, write_checkpoint

from cache.errors import InputError
from infer.limits import BatchLimits
from infer.sampling import Sampling, SeededDraw

ALONE = BatchLimits(1, 1, 2048)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536))
    images = draw_noise(tmp_path_factory.mktemp("images"), 3)
    return encode_folder(checkpoint, images, tmp_path_factory.mktemp("home"))


def _answers(encoded: Encoded, sampling: Sampling, limits: BatchLimits) -> list[tuple[int, ...]]:
    requests = encoded.requests(PROMPTS[:3], sampling)
    answers = encoded.answers(requests, limits)
    return [answers[request.id].tokens for request in requests]


def test_neighbours_do_not_change_a_sampled_answer(encoded: Encoded) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=7, max_tokens=12)
    alone = _answers(encoded, sampling, ALONE)
    assert _answers(encoded, sampling, BatchLimits(8, 4, 32)) == alone
    assert _answers(encoded, sampling, BatchLimits(3, 2, 2048)) == alone


def test_another_seed_gives_another_answer(encoded: Encoded) -> None:
    first, second = (
        _answers(encoded, Sampling(temperature=1.5, seed=seed, max_tokens=12), ALONE) for seed in (1, 2)
    )
    assert first != second


def test_draws_follow_the_distribution() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    draw = SeededDraw(Sampling(temperature=1.0), (), (1, 2, 3))
    counts = np.bincount([int(np.array(mx.argmax(draw(None, logits)))) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_top_p_keeps_the_smallest_set_that_holds_the_share() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    draw = SeededDraw(Sampling(temperature=1.0, top_p=0.6), (), ())
    drawn = {int(np.array(mx.argmax(draw(None, logits)))) for _ in range(400)}
    assert drawn == {0, 1}


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Sampling(**wrong)  # type: ignore[arg-type]
