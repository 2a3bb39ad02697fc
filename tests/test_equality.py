"""Answers from the store, batched, are those of mlx-vlm live, one request at a time.

Of one checkpoint always, of the others in the campaign; ``test_equality_mixes`` has some of each always.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from live_mlx_vlm import PROMPTS, Encoded, Live, draw_noise, encode_folder
from tiny_checkpoint import Tiny, write_checkpoint

from infer.limits import BatchLimits
from infer.sampling import Sampling

MAX_TOKENS = 6
CHECKPOINTS = {
    "plain": Tiny(max_pixels=65536),
    "tied": Tiny(max_pixels=65536, tied=True),
    "moe": Tiny(max_pixels=65536, moe=True),
    "text4": Tiny(max_pixels=65536, text_bits=4),
    "vision8": Tiny(max_pixels=65536, vision_bits=8),
    "mlx": Tiny(max_pixels=65536, layout="mlx"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_noise(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture(
    scope="module",
    params=[
        "plain",
        *(pytest.param(name, marks=pytest.mark.campaign) for name in CHECKPOINTS if name != "plain"),
    ],
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), CHECKPOINTS[request.param])


@pytest.fixture(scope="module")
def encoded(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return encode_folder(checkpoint, images, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def want(checkpoint: Path, encoded: Encoded) -> list[tuple[int, ...]]:
    live = Live(checkpoint)
    return [
        live.tokens(prompt, Path(frame.source), MAX_TOKENS)
        for frame in encoded.manifest.frames
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize(
    "limits",
    [
        BatchLimits(max_num_seqs=5, prefill_batch_size=5, prefill_step_size=37),
        *(
            pytest.param(limits, marks=pytest.mark.campaign)
            for limits in (
                BatchLimits(5, 5, 7),
                BatchLimits(8, 4, 64),
                BatchLimits(1, 4, 2048),
                BatchLimits(16, 8, 2048),
            )
        ),
    ],
    ids=["5-5-37", "5-5-7", "8-4-64", "1-4-2048", "16-8-2048"],
)
def test_mixed_requests_give_the_tokens_of_one_at_a_time_live(
    encoded: Encoded, want: list[tuple[int, ...]], limits: BatchLimits
) -> None:
    requests = encoded.requests(PROMPTS, Sampling(max_tokens=MAX_TOKENS))
    got = encoded.answers(requests, limits)
    assert [got[request.id].tokens for request in requests] == want
    assert len(set(want)) > len(want) // 2  # the control: answers do depend on picture and prompt


def test_lengths_may_differ_within_a_batch(encoded: Encoded, want: list[tuple[int, ...]]) -> None:
    requests = [
        replace(request, sampling=Sampling(max_tokens=1 + request.id % MAX_TOKENS))
        for request in encoded.requests(PROMPTS, Sampling())
    ]
    got = encoded.answers(requests, BatchLimits(max_num_seqs=6, prefill_batch_size=3, prefill_step_size=32))
    for request in requests:
        assert got[request.id].tokens == want[request.id][: request.sampling.max_tokens]
