"""A sampled answer depends on its seed, frames and prompt, and on nothing else in the batch."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from live_mlx_vlm import PROMPTS, Encoded, draw_noise, encode_folder
from mlx_vlm.sample_utils import make_logits_processors, make_sampler
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.errors import InputError
from infer.limits import BatchLimits
from infer.sampling import RepetitionPenalty, Sampling, SeededDraw
from infer.sequence import HooksOf, sampling_hooks

ALONE, TOGETHER = BatchLimits(1, 1, 2048), BatchLimits(8, 4, 32)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536))
    images = draw_noise(tmp_path_factory.mktemp("images"), 2)
    return encode_folder(checkpoint, images, tmp_path_factory.mktemp("home"))


def _answers(
    encoded: Encoded, sampling: Sampling, limits: BatchLimits, hooks_of: HooksOf | None = sampling_hooks
) -> list[tuple[int, ...]]:
    requests = encoded.requests(PROMPTS[:3], sampling)
    answers = encoded.answers(requests, limits, hooks_of)
    return [answers[request.id].tokens for request in requests]


def test_neighbours_do_not_change_a_sampled_answer(encoded: Encoded) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=7, max_tokens=4)
    alone = _answers(encoded, sampling, ALONE)
    assert _answers(encoded, sampling, TOGETHER) == alone
    assert _answers(encoded, sampling, BatchLimits(3, 2, 2048)) == alone


def test_another_seed_gives_another_answer(encoded: Encoded) -> None:
    first, second = (
        _answers(encoded, Sampling(temperature=1.5, seed=seed, max_tokens=4), TOGETHER) for seed in (1, 2)
    )
    assert first != second


def test_draws_follow_the_distribution() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    draw = SeededDraw(Sampling(temperature=1.0), (), (1, 2, 3))
    counts = np.bincount([int(np.array(mx.argmax(draw(None, logits)))) for _ in range(2000)], minlength=4)
    np.testing.assert_allclose(counts / 2000, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_top_p_keeps_the_smallest_set_that_holds_the_share() -> None:
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    draw = SeededDraw(Sampling(temperature=1.0, top_p=0.6), (), ())
    drawn = {int(np.array(mx.argmax(draw(None, logits)))) for _ in range(200)}
    assert drawn == {0, 1}


FILTERS = [
    {"top_k": 1}, {"top_k": 7}, {"top_k": 10_000}, {"min_p": 0.3}, {"min_p": 1.0}, {"top_p": 0.5},
    {"top_p": 0.9, "min_p": 0.05}, {"top_p": 0.8, "top_k": 5}, {"min_p": 0.02, "top_k": 9},
    {"top_p": 0.95, "min_p": 0.01, "top_k": 12},
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_filters_keep_the_tokens_that_mlx_vlms_own_sampler_draws(
    filters: dict[str, Any], temperature: float
) -> None:
    """Both draw often from one distribution of 24 tokens: the same ones come, about equally often."""
    logits = mx.random.normal((1, 24), key=mx.random.key(5)) * 2
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    theirs = make_sampler(temp=temperature, **({} if filters.get("top_k") == 10_000 else filters))
    mx.random.seed(1)
    drawn = np.array(theirs(mx.repeat(logprobs, 300, axis=0)))
    draw = SeededDraw(Sampling(temperature=temperature, **filters), (), (1, 2))
    ours = np.array(mx.argmax(mx.concatenate([draw(None, logits) for _ in range(300)]), axis=-1))
    own, other = (np.bincount(found, minlength=24) / 300 for found in (ours, drawn))
    np.testing.assert_allclose(own, other, atol=0.13)
    scores = np.array(draw(None, logits))[0]
    assert set(drawn) <= set(np.flatnonzero(np.isfinite(scores)))
    rare = np.flatnonzero(np.isfinite(scores) & (np.exp(np.array(logprobs)[0] / temperature) > 0.05))
    assert set(rare) <= set(drawn)


@pytest.mark.parametrize(("penalty", "window"), [(1.3, 20), (5.0, 3), (0.5, 7), (1.1, 1)])
def test_the_repetition_penalty_is_that_of_mlx_vlm(penalty: float, window: int) -> None:
    prompt, answer = [3, 5, 5, 9, 11, 2], [4, 4, 9, 0, 23, 4]
    processor = RepetitionPenalty(Sampling(repetition_penalty=penalty, repetition_window=window))
    (theirs,) = make_logits_processors(repetition_penalty=penalty, repetition_context_size=window)
    for step in range(len(answer)):
        logits = mx.random.normal((1, 24), key=mx.random.key(step))
        tokens = mx.array(prompt + answer[:step])
        ours = (
            processor(tokens, logits) if step == 0 else processor.process_last_token(answer[step - 1], logits)
        )
        np.testing.assert_allclose(np.array(ours), np.array(theirs(tokens, mx.array(logits))), rtol=1e-6)


def test_all_settings_together_do_not_depend_on_the_neighbours(encoded: Encoded) -> None:
    sampling = Sampling(
        temperature=0.9, top_p=0.95, top_k=40, min_p=0.01, seed=7, max_tokens=4,
        repetition_penalty=1.2, repetition_window=9, logprobs=2,
    )  # fmt: skip
    alone = _answers(encoded, sampling, ALONE, None)
    assert _answers(encoded, sampling, TOGETHER, None) == alone
    assert _answers(encoded, sampling, BatchLimits(3, 2, 2048, share_prefixes=False), None) == alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}, {"top_k": -1}, {"min_p": 1.1},
        {"min_p": -0.1}, {"repetition_penalty": 0}, {"repetition_penalty": float("nan")},
        {"repetition_window": 0}, {"stop": ("a", "")}, {"stop": ("\udc80",)}, {"logprobs": -1},
        {"logprobs": 21}, {"min_p": float("nan")}, {"top_p": float("nan")}, {"temperature": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        Sampling(**wrong)
