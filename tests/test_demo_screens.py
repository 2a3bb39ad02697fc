"""Drawn screens, their truth, the recording: the same for everybody, and true."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seeonce.demo.paint import paint
from seeonce.demo.questions import QUESTIONS, answers, change_answer, change_text
from seeonce.demo.record import recording_scenes
from seeonce.demo.scene import APPS, LAYOUTS, TOPICS, sample_scene
from seeonce.demo.screens import (
    FIRST_HELD_OUT_SEED,
    RECORDING_SEED,
    SIZES,
    TRAINING_SEEDS,
    VALIDATION_SEEDS,
    frame_name,
    write_folder,
)
from seeonce.runs.score import read_truth

RECORDING = Path(__file__).parent.parent / "seeonce" / "demo" / "recording"


@pytest.mark.parametrize("size", SIZES)
def test_a_seed_draws_the_same_pixels_every_time(size: tuple[int, int]) -> None:
    first, second = sample_scene(7, size), sample_scene(7, size)
    assert paint(first).size == size
    assert paint(first).tobytes() == paint(second).tobytes()
    assert first == second


def test_other_seeds_draw_other_screens() -> None:
    assert len({paint(sample_scene(seed, SIZES[0])).tobytes() for seed in range(0, 16, 2)}) == 8


def test_applications_and_topics_of_one_screen_are_distinct() -> None:
    for seed in range(500):
        panes = sample_scene(seed, SIZES[0]).panes
        assert len({pane.app for pane in panes}) == len({pane.topic for pane in panes}) == len(panes)


def test_seeds_cover_every_application_topic_and_layout() -> None:
    scenes = [sample_scene(seed, SIZES[0]) for seed in range(500)]
    assert {pane.app for scene in scenes for pane in scene.panes} == set(APPS)
    assert {pane.topic for scene in scenes for pane in scene.panes} == set(TOPICS)
    assert {(scene.layout, len(scene.windows)) for scene in scenes} == {
        (layout, count) for count, layouts in LAYOUTS.items() for layout in layouts
    }


@pytest.mark.parametrize("size", SIZES)
def test_windows_stay_on_the_screen_and_one_has_the_focus(size: tuple[int, int]) -> None:
    for seed in range(300):
        scene = sample_scene(seed, size)
        assert sum(window.focused for window in scene.windows) == 1
        for x0, y0, x1, y1 in (window.box for window in scene.windows):
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


def test_training_never_sees_the_seeds_of_others() -> None:
    ranges = (TRAINING_SEEDS, VALIDATION_SEEDS)
    assert max(TRAINING_SEEDS) < min(VALIDATION_SEEDS)
    assert all(seed not in seeds for seeds in ranges for seed in (RECORDING_SEED, FIRST_HELD_OUT_SEED))
    assert max(*TRAINING_SEEDS[-1:], *VALIDATION_SEEDS[-1:], RECORDING_SEED) < FIRST_HELD_OUT_SEED


def test_a_folder_of_screens_has_their_truth_beside_them(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, FIRST_HELD_OUT_SEED)
    named = {name for _, name, _ in read_truth(tmp_path / "truth.csv")}
    assert named == {path.name for path in tmp_path.glob("*.png")}


def test_the_recording_is_what_its_seed_draws() -> None:
    scenes = list(recording_scenes())
    names = [frame_name(index, 10.0 * index) for index in range(len(scenes))]
    assert names == sorted(path.name for path in RECORDING.glob("*.png"))
    for name, scene in list(zip(names, scenes, strict=True))[::6]:
        saved = np.asarray(Image.open(RECORDING / name).convert("RGB"), dtype=np.int16)
        assert np.abs(saved - np.asarray(paint(scene), dtype=np.int16)).mean() < 1


def test_the_truth_of_the_recording_is_true_of_its_scenes() -> None:
    scenes = list(recording_scenes())
    truth = read_truth(RECORDING / "truth.csv")
    names = list(dict.fromkeys(name for _, name, _ in truth))
    for name, scene in zip(names, scenes, strict=True):
        for question, true in answers(scene).items():
            assert {truth[None, name, text].text for text in QUESTIONS[question]} == {true}
    apps = [str(truth[None, name, QUESTIONS["apps"][0]].text) for name in names]
    changes = [change_text(*pair) for pair in pairwise(apps)]
    assert changes == [change_answer(*pair) for pair in pairwise(scenes)]


def test_the_recording_has_repeats_two_sizes_and_stays_small() -> None:
    paths = sorted(RECORDING.glob("*.png"))
    pictures = [Image.open(path).convert("RGB") for path in paths]
    assert len(paths) >= 40
    assert len({picture.tobytes() for picture in pictures}) < 0.7 * len(paths)
    assert {picture.size for picture in pictures} == set(SIZES)
    assert sum(path.stat().st_size for path in RECORDING.iterdir()) <= 3_000_000
