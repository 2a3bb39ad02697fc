"""A later run starts from prefixes on disk: no image token is computed, and no answer changes by that."""

from pathlib import Path

import pytest
from asked_live import Asked
from test_prefix_sharing import SeenByDecoder

from infer.limits import BatchLimits

LIMITS = BatchLimits(8, 4, 2048)


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("kept"), 9)


@pytest.mark.parametrize("limits", [LIMITS, BatchLimits(1, 1, 2048), BatchLimits(3, 8, 33)], ids=str)
def test_a_new_prompt_in_a_later_run_computes_no_image_token(
    asked: Asked, limits: BatchLimits, tmp_path: Path
) -> None:
    first = [asked.request(n, frame, "Which app is open?") for n, frame in enumerate(asked.frames)]
    later = [asked.request(n, frame, "And what is the user doing?") for n, frame in enumerate(asked.frames)]
    with asked.on_disk(tmp_path):
        ended = asked.run(first, limits)
        assert ended.stats.num_images == len(asked.frames)
        assert ended.tokens(first) == asked.want(first)
        with SeenByDecoder(asked) as seen:
            ended = asked.run(later, limits)
    assert (seen.num_image_positions, ended.stats.num_images) == (0, 0)
    assert ended.stats.num_images_read == len(asked.frames)
    assert ended.tokens(later) == asked.want(later)
