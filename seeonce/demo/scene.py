"""What is on a screen: windows with application, topic, place and focus, sampled from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

APPS = ("terminal", "editor", "browser", "chat", "calendar", "mail", "notes", "design tool")

# A topic is given by its word on a label of its own colour: the word alone is a few pixels
# high at the model's resolution, and was not learned from in 1,650 steps of a trial.
TOPIC_COLOURS: dict[str, tuple[int, int, int]] = {
    "billing": (214, 40, 40),
    "travel": (245, 138, 24),
    "weather": (252, 216, 52),
    "garden": (152, 208, 56),
    "backup": (30, 128, 62),
    "search": (24, 172, 166),
    "release": (28, 46, 128),
    "music": (132, 66, 196),
    "hiring": (242, 112, 178),
    "recipes": (128, 82, 46),
    "budget": (250, 250, 250),
    "login": (22, 22, 24),
}
TOPICS = tuple(TOPIC_COLOURS)
THEMES = ("light", "dark")

LAYOUTS: dict[int, tuple[str, ...]] = {
    1: ("full", "middle"),
    2: ("columns", "rows", "cascade"),
    3: ("columns", "main", "cascade"),
}
MENU_BAR_HEIGHT = 34

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Pane:
    """What a window shows, wherever it stands."""

    app: str
    topic: str
    content_seed: int


@dataclass(frozen=True, slots=True)
class Window:
    """A pane at a place, in pixels of the full-size screen."""

    pane: Pane
    box: Box
    focused: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole screen.

    `windows` are in the order in which a description names them: left to right and top to
    bottom where they are tiled, front to back where they overlap.
    """

    size: tuple[int, int]
    theme: str
    layout: str
    windows: tuple[Window, ...]
    clock_min: int
    wallpaper_seed: int

    @property
    def panes(self) -> tuple[Pane, ...]:
        """The panes in the order of the windows."""
        return tuple(window.pane for window in self.windows)

    @property
    def focused(self) -> Window:
        """The window that the user works in."""
        return next(window for window in self.windows if window.focused)


def sample_scene(seed: int, size: tuple[int, int]) -> Scene:
    """Return the scene of `seed`; half of the odd seeds continue the even seed before.

    So two consecutive screens often differ by one step, as frames of a recording do.
    """
    rng = random.Random(f"scene {seed}")
    if seed % 2 == 1 and rng.random() < 0.5:
        return next_scene(sample_scene(seed - 1, size), rng)
    panes = _sample_panes(rng, rng.randint(1, 3))
    layout = rng.choice(LAYOUTS[len(panes)])
    windows = arrange(panes, layout, rng.randrange(len(panes)), size, rng)
    return Scene(size, rng.choice(THEMES), layout, windows, rng.randrange(24 * 60), rng.getrandbits(32))


def next_scene(scene: Scene, rng: random.Random) -> Scene:
    """Return `scene` a moment later: a window opened, closed or replaced, focus moved, or nothing."""
    panes = list(scene.panes)
    steps = ["nothing", "replace", "focus"]
    steps += ["open"] if len(panes) < 3 else []
    steps += ["close"] if len(panes) > 1 else []
    step = rng.choice(steps)
    if step == "nothing":
        return replace(scene, clock_min=(scene.clock_min + 1) % (24 * 60))
    if step == "close":
        panes.pop(rng.randrange(len(panes)))
    elif step == "open":
        panes.append(_sample_pane(rng, panes))
    elif step == "replace":
        index = rng.randrange(len(panes))
        panes[index] = _sample_pane(rng, panes)
    layout = scene.layout if len(panes) == len(scene.windows) else rng.choice(LAYOUTS[len(panes)])
    windows = arrange(panes, layout, rng.randrange(len(panes)), scene.size, rng)
    return replace(scene, layout=layout, windows=windows)


def arrange(
    panes: list[Pane], layout: str, focus: int, size: tuple[int, int], rng: random.Random
) -> tuple[Window, ...]:
    """Place `panes` on a screen of `size`; in a cascade the front window has the focus."""
    width, height = size
    margin = rng.randint(4, 26)
    area = (margin, MENU_BAR_HEIGHT + margin, width - margin, height - margin)
    if layout == "cascade":
        focus = 0
    boxes = _LAYOUT_BOXES[(layout, len(panes))](area, rng)
    return tuple(
        Window(pane, box, index == focus) for index, (pane, box) in enumerate(zip(panes, boxes, strict=True))
    )


def _sample_panes(rng: random.Random, count: int) -> list[Pane]:
    panes: list[Pane] = []
    for _ in range(count):
        panes.append(_sample_pane(rng, panes))
    return panes


def _sample_pane(rng: random.Random, others: list[Pane]) -> Pane:
    """Return a pane whose application and topic are not among `others`."""
    app = rng.choice([name for name in APPS if name not in {pane.app for pane in others}])
    topic = rng.choice([name for name in TOPICS if name not in {pane.topic for pane in others}])
    return Pane(app, topic, rng.getrandbits(32))


def _middle(area: Box, rng: random.Random) -> list[Box]:
    x0, y0, x1, y1 = area
    width, height = int((x1 - x0) * rng.uniform(0.5, 0.66)), int((y1 - y0) * rng.uniform(0.56, 0.72))
    left = (x0 + x1 - width) // 2 + rng.randint(-40, 40)
    top = (y0 + y1 - height) // 2 + rng.randint(-30, 30)
    return [(left, top, left + width, top + height)]


def _columns(area: Box, rng: random.Random) -> list[Box]:
    x0, y0, x1, y1 = area
    cut, gap = x0 + int((x1 - x0) * rng.uniform(0.4, 0.6)), rng.randint(4, 16)
    return [(x0, y0, cut - gap, y1), (cut + gap, y0, x1, y1)]


def _rows(area: Box, rng: random.Random) -> list[Box]:
    x0, y0, x1, y1 = area
    cut, gap = y0 + int((y1 - y0) * rng.uniform(0.42, 0.58)), rng.randint(4, 14)
    return [(x0, y0, x1, cut - gap), (x0, cut + gap, x1, y1)]


def _three_columns(area: Box, rng: random.Random) -> list[Box]:
    x0, y0, x1, y1 = area
    width, gap = (x1 - x0) / 3, rng.randint(3, 8)
    first, second = int(x0 + width + rng.randint(-12, 12)), int(x0 + 2 * width + rng.randint(-12, 12))
    return [(x0, y0, first - gap, y1), (first + gap, y0, second - gap, y1), (second + gap, y0, x1, y1)]


def _main(area: Box, rng: random.Random) -> list[Box]:
    _, y0, x1, y1 = area
    left, right = _columns(area, rng)
    cut, gap = y0 + int((y1 - y0) * rng.uniform(0.44, 0.56)), rng.randint(4, 12)
    return [left, (right[0], y0, x1, cut - gap), (right[0], cut + gap, x1, y1)]


def _cascade(area: Box, rng: random.Random, count: int) -> list[Box]:
    """Return boxes front to back; every title bar and a strip of every window stays visible."""
    x0, y0, x1, y1 = area
    width = int((x1 - x0) * (0.7 if count == 2 else 0.6) * rng.uniform(0.94, 1.04))
    height = int((y1 - y0) * (0.68 if count == 2 else 0.58) * rng.uniform(0.94, 1.04))
    xs = [x0 + round(index * (x1 - x0 - width) / (count - 1)) for index in range(count)]
    ys = [y0 + round(index * (y1 - y0 - height) / (count - 1)) for index in range(count)]
    back_to_front = [(x, y, x + width, y + height) for x, y in zip(xs, ys, strict=True)]
    return back_to_front[::-1]


_LAYOUT_BOXES: dict[tuple[str, int], Callable[[Box, random.Random], list[Box]]] = {
    ("full", 1): lambda area, _: [area],
    ("middle", 1): _middle,
    ("columns", 2): _columns,
    ("rows", 2): _rows,
    ("cascade", 2): partial(_cascade, count=2),
    ("columns", 3): _three_columns,
    ("main", 3): _main,
    ("cascade", 3): partial(_cascade, count=3),
}
