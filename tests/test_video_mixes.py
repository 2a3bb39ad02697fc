"""Random videos against decoding through: a few always, hundreds in the campaign.

Times with gaps and before zero, distances between keyframes, B-frames, open groups, fragments, no index.
"""

import random
from pathlib import Path

import numpy as np
import pytest
from test_video_seeks import decoded_through, marked
from videos import picture, write_video

from sources.picture_times import PictureTimes
from sources.recording import FrameChoice
from sources.video import open_video

ALWAYS, CAMPAIGN = range(8), range(8, 300)
SEEDS = [*ALWAYS, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in CAMPAIGN)]
GAPS_MS = (1, 2, 33, 33, 40, 40, 40, 1000, 60_000)


def _random_video(chance: random.Random, folder: Path) -> Path:
    name = chance.choice(["a.mp4", "a.mov", "a.mkv"])
    codec = chance.choice(["libx264", "libx264", "mpeg4"])
    times_ms = [chance.choice([0, 0, 5000] if name == "a.mkv" else [0, 0, -333, 100_000])]
    for _ in range(chance.choice([20, 60, 150])):
        times_ms.append(times_ms[-1] + chance.choice(GAPS_MS))
    options = {"g": chance.choice(["1", "3", "12", "50", "999"])}
    if codec == "libx264":
        options |= {"bf": chance.choice(["0", "2", "8"])}
        options |= {"x264-params": chance.choice(["open-gop=0", "open-gop=1", "open-gop=1:b-pyramid=normal"])}
    live = {"live": "1"} if name == "a.mkv" else {"movflags": "frag_keyframe+empty_moov"}
    whole = {} if name == "a.mkv" else {"avoid_negative_ts": "disabled"}
    return write_video(
        folder / name,
        [(time_ms, picture(number)) for number, time_ms in enumerate(times_ms)],
        codec=codec, options=options, container=chance.choice([whole, live]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_random_videos_give_the_pictures_of_decoding_through_in_any_order(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    video = _random_video(chance, tmp_path)
    through = decoded_through(video)
    times = PictureTimes(video)
    times.close()
    for every_s in (0.04, chance.choice([0.5, 3.0, 20.0]), 1e6):
        frames = list(open_video(video, FrameChoice(every_s)).frames())
        expected = marked([pts for pts, _ in through], times.time_base, every_s)
        assert [frame.stamp.position for frame in frames] == [f"pts={pts}" for pts in expected]
        pixels = dict(zip(expected, frames, strict=True))
        some = chance.sample(expected, min(20, len(expected)))
        shown = dict(through)
        assert all(np.array_equal(np.asarray(pixels[pts].read()), shown[pts]) for pts in some)
