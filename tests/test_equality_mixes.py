"""Random mixes of requests and limits against mlx-vlm live: a few always, many in the campaign."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from live_mlx_vlm import PROMPTS, Encoded, Live, draw_noise, encode_folder
from tiny_checkpoint import Tiny, write_checkpoint

from infer.batching import Request
from infer.limits import BatchLimits
from infer.sampling import Sampling

MAX_TOKENS = 12
ALWAYS, CAMPAIGN = range(4), range(4, 200)


class Asked:
    """Every prompt of every frame, with live's answer to each."""

    def __init__(self, root: Path) -> None:
        checkpoint = write_checkpoint(root / "checkpoint", Tiny(max_pixels=65536))
        self.encoded: Encoded = encode_folder(checkpoint, draw_noise(root / "images", 8), root / "home")
        self.requests = self.encoded.requests(PROMPTS, Sampling(max_tokens=MAX_TOKENS))
        live = Live(checkpoint)
        frames = self.encoded.manifest.frames
        self.want = [
            live.tokens(prompt, Path(frame.source), MAX_TOKENS) for frame in frames for prompt in PROMPTS
        ]

    def mix(self, rng: random.Random) -> tuple[list[Request], list[tuple[int, ...]], BatchLimits]:
        """Draw requests with lengths of their own, in any order, some of them twice, and limits."""
        chosen = rng.choices(range(len(self.requests)), k=rng.randint(1, 24))
        lengths = [rng.randint(1, MAX_TOKENS) for _ in chosen]
        requests = [
            replace(self.requests[which], id=number, sampling=Sampling(max_tokens=length))
            for number, (which, length) in enumerate(zip(chosen, lengths, strict=True))
        ]
        want = [self.want[which][:length] for which, length in zip(chosen, lengths, strict=True)]
        step = rng.choice([5, 16, 33, 64, 100, 512, 2048])
        return requests, want, BatchLimits(rng.randint(1, 16), rng.randint(1, 8), step)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(tmp_path_factory.mktemp("mixes"))


@pytest.mark.parametrize(
    "seed", [*ALWAYS, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in CAMPAIGN)]
)
def test_a_random_mix_gives_the_tokens_of_one_at_a_time_live(asked: Asked, seed: int) -> None:
    requests, want, limits = asked.mix(random.Random(seed))
    answers = asked.encoded.answers(requests, limits)
    assert [answers[request.id].tokens for request in requests] == want
