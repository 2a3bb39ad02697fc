"""A scene as pixels: wallpaper, menu bar with a clock, windows with title bar and topic label.

The picture must carry the truth at a quarter of its size, which is what the demo checkpoint
sees. So the focused title bar is blue and the others grey, and labels have a colour each.
"""

import random

from PIL import Image, ImageDraw

from seeonce.demo.apps import ICON_COLOURS, PAINTERS, Canvas, Colour, font
from seeonce.demo.scene import MENU_BAR_HEIGHT, TOPIC_COLOURS, Scene, Window

TITLE_BAR_HEIGHT = 64
LABEL_LEFT, LABEL_MIN_WIDTH = 64, 120
FOCUS_COLOUR: Colour = (38, 118, 244)
_WALLPAPERS: dict[str, tuple[tuple[Colour, Colour], ...]] = {
    "light": (
        ((206, 226, 240), (156, 188, 214)),
        ((236, 226, 214), (206, 184, 166)),
        ((214, 232, 214), (164, 196, 172)),
    ),
    "dark": (((30, 38, 58), (12, 16, 28)), ((46, 34, 54), (18, 14, 26)), ((26, 44, 44), (10, 20, 22))),
}


def paint(scene: Scene) -> Image.Image:
    """Return the picture of `scene`, RGB at full size."""
    image = _wallpaper(scene)
    _menu_bar(image, scene)
    for window in reversed(scene.windows):
        picture = _window(window, scene.theme == "dark")
        x, y = window.box[0], window.box[1]
        ImageDraw.Draw(image).rectangle(
            (x + 5, y + 7, x + picture.width + 5, y + picture.height + 7), fill=_shadow(scene)
        )
        image.paste(picture, (x, y))
    return image


def _shadow(scene: Scene) -> Colour:
    return (6, 7, 10) if scene.theme == "dark" else (128, 134, 142)


def _wallpaper(scene: Scene) -> Image.Image:
    rng = random.Random(scene.wallpaper_seed)
    width, height = scene.size
    top, bottom = rng.choice(_WALLPAPERS[scene.theme])
    image = Image.new("RGB", scene.size, top)
    draw = ImageDraw.Draw(image)
    bands = 24
    for band in range(bands):
        share = band / (bands - 1)
        colour = tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        draw.rectangle((0, height * band // bands, width, height), fill=colour)
    peak = rng.randint(width // 5, width * 4 // 5)
    hill = tuple(round(channel * 0.88) for channel in bottom)
    draw.polygon([(0, height), (peak, height - rng.randint(120, 260)), (width, height)], fill=hill)
    for index in range(rng.randint(0, 4)):
        y = 60 + 104 * index
        draw.rounded_rectangle((width - 82, y, width - 26, y + 44), 6, fill=(120, 158, 196))
        draw.text((width - 84, y + 48), "folder", font=font(15), fill=(236, 238, 240))
    return image


def _menu_bar(image: Image.Image, scene: Scene) -> None:
    dark = scene.theme == "dark"
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width, MENU_BAR_HEIGHT), fill=(22, 23, 27) if dark else (246, 246, 248))
    ink = (226, 228, 232) if dark else (40, 42, 46)
    for index, word in enumerate(("Desk", "File", "View", "Window", "Help")):
        draw.text((18 + 82 * index, 8), word, font=font(17), fill=ink)
    clock = f"{scene.clock_min // 60:02d}:{scene.clock_min % 60:02d}"
    draw.text((image.width - 74, 7), clock, font=font(20), fill=ink)


def _window(window: Window, dark: bool) -> Image.Image:
    """Return a window in its own image, so that nothing is drawn outside of it."""
    width, height = window.box[2] - window.box[0], window.box[3] - window.box[1]
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    body = (0, TITLE_BAR_HEIGHT, width, height)
    rng = random.Random(window.pane.content_seed)
    PAINTERS[window.pane.app](Canvas(draw, body, dark, rng))
    _title_bar(draw, window, width, dark)
    edge = FOCUS_COLOUR if window.focused else ((84, 88, 96) if dark else (172, 176, 184))
    draw.rectangle((0, 0, width - 1, height - 1), outline=edge, width=5 if window.focused else 3)
    return image


def _title_bar(draw: ImageDraw.ImageDraw, window: Window, width: int, dark: bool) -> None:
    bar: Colour = FOCUS_COLOUR if window.focused else ((70, 73, 80) if dark else (206, 209, 214))
    ink: Colour = (255, 255, 255) if window.focused or dark else (60, 62, 68)
    draw.rectangle((0, 0, width, TITLE_BAR_HEIGHT), fill=bar)
    pane = window.pane
    draw.rounded_rectangle(
        (10, 10, 54, 54), 10, fill=ICON_COLOURS[pane.app], outline=(255, 255, 255), width=2
    )
    right = _label(draw, pane.topic, LABEL_LEFT)
    draw.text((right + 12, 18), pane.app.capitalize(), font=font(24), fill=ink)
    lights = ((255, 95, 86), (255, 189, 46), (39, 201, 63)) if window.focused else ((150, 150, 154),) * 3
    for index, colour in enumerate(lights):
        x = width - 28 - 24 * index
        if width > 440:
            draw.ellipse((x, 24, x + 16, 40), fill=colour)


def _label(draw: ImageDraw.ImageDraw, topic: str, x: int) -> int:
    """Draw the topic's word on its colour, with a rim that keeps it apart; return its right end."""
    colour = TOPIC_COLOURS[topic]
    right = x + 40 + int(font(34).getlength(topic))
    bright = sum(colour) > 400
    rim = (40, 40, 44) if bright else (255, 255, 255)
    draw.rounded_rectangle((x, 4, right, TITLE_BAR_HEIGHT - 4), 10, fill=colour, outline=rim, width=3)
    draw.text((x + 20, 11), topic, font=font(34), fill=(16, 16, 18) if bright else (255, 255, 255))
    return right
