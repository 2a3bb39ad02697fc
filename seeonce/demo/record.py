"""The demo recording: a morning's work on a desktop, drawn again from its seed.

    python -m seeonce.demo.record demo/recording

The frames are ten seconds apart. Between two of them often nothing moves: such frames are
equal pixel by pixel, which is what content addressing is for. Sometimes only the clock or
the text of one window moves. At the end the screen is the smaller one of another desk.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from seeonce.demo.paint import paint
from seeonce.demo.scene import Pane, Scene, arrange
from seeonce.demo.screens import RECORDING_SEED, SIZES, frame_name, write_truth

INTERVAL_S = 10.0
NUM_COLOURS = 256


@dataclass(frozen=True, slots=True)
class Moment:
    """What is open for `num_frames` frames; the first pane has the focus in a cascade."""

    layout: str
    panes: tuple[tuple[str, str], ...]
    focus: int
    num_frames: int
    scrolls: bool = False
    theme: str = "light"
    wide: bool = True


SESSION = (
    Moment("full", (("mail", "billing"),), 0, 4),
    Moment("columns", (("mail", "billing"), ("calendar", "hiring")), 1, 3),
    Moment("columns", (("mail", "billing"), ("calendar", "hiring")), 0, 2),
    Moment("full", (("mail", "billing"),), 0, 2),
    Moment("columns", (("editor", "login"), ("terminal", "release")), 0, 4, scrolls=True),
    Moment("columns", (("editor", "login"), ("terminal", "release")), 1, 3, scrolls=True),
    Moment("main", (("editor", "login"), ("terminal", "release"), ("browser", "search")), 2, 4),
    Moment("main", (("editor", "login"), ("terminal", "release"), ("chat", "backup")), 2, 3, scrolls=True),
    Moment("columns", (("editor", "login"), ("terminal", "release")), 0, 4),
    Moment("middle", (("notes", "recipes"),), 0, 3),
    Moment("cascade", (("browser", "travel"), ("notes", "recipes")), 0, 3, theme="dark"),
    Moment(
        "cascade",
        (("design tool", "garden"), ("browser", "travel"), ("notes", "recipes")),
        0,
        4,
        theme="dark",
    ),
    Moment("rows", (("design tool", "garden"), ("chat", "music")), 1, 3, scrolls=True, theme="dark"),
    Moment("columns", (("terminal", "weather"), ("calendar", "budget")), 0, 4, theme="dark", wide=False),
    Moment("full", (("mail", "billing"),), 0, 3, wide=False),
)


def recording_scenes() -> Iterator[Scene]:
    """Yield the scene of every frame; the clock moves on once a minute."""
    seeds: dict[tuple[str, str], int] = {}
    frames_per_min = int(60 / INTERVAL_S)
    index = 0
    for moment in SESSION:
        scene = _scene(moment, seeds)
        for frame in range(moment.num_frames):
            if moment.scrolls and frame % 2 == 1:
                scene = _scrolled(scene, frame)
            yield replace(scene, clock_min=9 * 60 + 12 + index // frames_per_min)
            index += 1


def _scene(moment: Moment, seeds: dict[tuple[str, str], int]) -> Scene:
    """Return the scene of `moment`; a window keeps its content, a layout its measures."""
    panes = []
    for shown in moment.panes:
        seeds.setdefault(shown, RECORDING_SEED + len(seeds))
        panes.append(Pane(*shown, seeds[shown]))
    size = SIZES[0] if moment.wide else SIZES[1]
    rng = random.Random(f"{RECORDING_SEED} {moment.layout} {len(panes)}")
    windows = arrange(panes, moment.layout, moment.focus, size, rng)
    return Scene(size, moment.theme, moment.layout, windows, 0, RECORDING_SEED)


def _scrolled(scene: Scene, step: int) -> Scene:
    """Return `scene` with other text in the focused window."""
    windows = tuple(
        replace(window, pane=replace(window.pane, content_seed=window.pane.content_seed + 1000 + step))
        if window.focused
        else window
        for window in scene.windows
    )
    return replace(scene, windows=windows)


def write_recording(folder: Path) -> None:
    """Write the frames as palette PNG, and truth.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = list(recording_scenes())
    names = [frame_name(index, index * INTERVAL_S) for index in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        paint(scene).quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(folder / name, optimize=True)
    write_truth(folder, names, scenes)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m seeonce.demo.record", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where to write the frames and truth.csv")
    folder: Path = parser.parse_args().folder
    write_recording(folder)
    print(f"wrote {sum(moment.num_frames for moment in SESSION)} frames and truth.csv to {folder}")


if __name__ == "__main__":
    main()
