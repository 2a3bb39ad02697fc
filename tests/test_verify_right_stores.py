"""A right store passes at any batch size, with prefixes shared or not: twenty times of twenty."""

import random
from pathlib import Path

import pytest
from conftest import MAX_PIXELS, MakeCheckpoint
from live_mlx_vlm import draw_noise, encode_folder
from tiny_checkpoint import Tiny

from cache.base.home import Home
from cache.base.listener import Listener
from cache.manifest import write_manifest
from infer.limits import BatchLimits
from seeonce.verifier.levels import VerifyOptions
from seeonce.verifier.report import Level
from seeonce.verifier.verify import verify

CHECKPOINTS = {
    "plain": Tiny(max_pixels=MAX_PIXELS),
    "moe": Tiny(max_pixels=MAX_PIXELS, moe=True),
    "text4": Tiny(max_pixels=MAX_PIXELS, text_bits=4),
    "vision8": Tiny(max_pixels=MAX_PIXELS, vision_bits=8),
}
# MLX's CPU backend multiplies experts in float32 alone.
CASES = [(name, "float32") for name in CHECKPOINTS] + [
    (name, "bfloat16") for name in CHECKPOINTS if name != "moe"
]


def _limits(rng: random.Random) -> BatchLimits:
    return BatchLimits(
        max_num_seqs=rng.choice([1, 2, 3, 5, 8, 16]),
        prefill_batch_size=rng.choice([1, 2, 4, 8]),
        prefill_step_size=rng.choice([16, 33, 64, 2048]),
        share_prefixes=rng.random() < 0.7,
    )


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_right_store_passes_twenty_times_of_twenty(
    name: str, dtype: str, tmp_path: Path, checkpoint_of: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_DTYPE", dtype)
    checkpoint, images = checkpoint_of(CHECKPOINTS[name]), draw_noise(tmp_path / "images", 8)
    encoded = encode_folder(checkpoint, images, tmp_path / "home")
    write_manifest(Home(tmp_path / "home"), encoded.manifest)
    for seed in range(20):
        limits = _limits(random.Random(f"{name} {seed}"))
        options = VerifyOptions(str(images), Level.outputs, "4", str(checkpoint), seed=seed, limits=limits)
        report = verify(Home(tmp_path / "home"), options, Listener())
        problems = [problem for check in report.checks for problem in check.problems]
        figures = report.checks[2].logprobs
        assert figures is not None
        print(
            name, dtype, limits, f"{figures.max_abs:.2g} {figures.mean_abs:.2g} of {figures.mean_allowed:.2g}"
        )
        assert (problems, report.exit_code) == ([], 0)
