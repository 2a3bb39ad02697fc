"""A scene as pixels: wallpaper, menu bar with a clock, windows with title bar and topic label.

The picture must carry the truth at a quarter of its size, which is what the demo checkpoint
sees. So the focused title bar is blue and the others grey, and labels have a colour each.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from seeonce.demo.scene import MENU_BAR_HEIGHT, TOPIC_COLOURS, Box, Scene, Window

Colour = tuple[int, int, int]

_PROSE_TEXT = (
    "the plan for next week is ready and should go out on monday once everyone has read it we "
    "still need numbers from the last quarter a short list of open points and a picture that "
    "shows how the parts fit together please look at the second page first"
)
_CODE_TEXT = (
    "def return import class for in while if else value items result self path open read write "
    "count index frame total = == ( ) [ ] : -> None True print( yield await async lambda"
)
_DAYS_TEXT = "Mon Tue Wed Thu Fri Sat Sun"
_PROSE, _CODE, _DAYS = _PROSE_TEXT.split(), _CODE_TEXT.split(), _DAYS_TEXT.split()
_COMMANDS = ("make test", "git status", "ls -la", "cd src", "python run.py", "grep -n todo", "tail log.txt")
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

ICON_COLOURS: dict[str, Colour] = {
    "terminal": (20, 22, 26),
    "editor": (112, 60, 190),
    "browser": (250, 150, 40),
    "chat": (98, 206, 122),
    "calendar": (232, 72, 66),
    "mail": (240, 240, 250),
    "notes": (255, 226, 90),
    "design tool": (240, 110, 190),
}


def paint(scene: Scene) -> Image.Image:
    """Return the picture of `scene`, RGB at full size."""
    image = _wallpaper(scene)
    _menu_bar(image, scene)
    shadow = (6, 7, 10) if scene.theme == "dark" else (128, 134, 142)
    for window in reversed(scene.windows):
        picture = _window(window, scene.theme == "dark")
        x, y = window.box[0], window.box[1]
        ImageDraw.Draw(image).rectangle(
            (x + 5, y + 7, x + picture.width + 5, y + picture.height + 7), fill=shadow
        )
        image.paste(picture, (x, y))
    return image


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


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at `size` pixels, so that no system font is needed."""
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow has no FreeType support, so text cannot be drawn; install Pillow from a wheel"
        )
    return loaded


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a painter draws: the body of a window in its own image."""

    draw: ImageDraw.ImageDraw
    box: Box
    dark: bool
    rng: random.Random

    def pick(self, light: Colour, dark: Colour) -> Colour:
        """Return the colour of the theme."""
        return dark if self.dark else light

    def fill(self, box: Box, colour: Colour) -> None:
        """Fill `box`; a box without area draws nothing."""
        if box[2] > box[0] and box[3] > box[1]:
            self.draw.rectangle(box, fill=colour)

    def words(self, x: int, y: int, right: int, colour: Colour, size: int = 14) -> None:
        """Write a line of prose from `x` to at most `right`."""
        if right - x < 20:
            return
        count = max(1, int((right - x) / (size * 3)))
        start = self.rng.randrange(len(_PROSE))
        line = " ".join(_PROSE[(start + index) % len(_PROSE)] for index in range(count))
        self.draw.text((x, y), line, font=font(size), fill=colour)


def terminal(canvas: Canvas) -> None:
    """Near-black with green prompts and grey output."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((28, 30, 36), (10, 11, 14)))
    y = y0 + 10
    while y < y1 - 26:
        canvas.draw.text((x0 + 12, y), "me@desk ~ $", font=font(17), fill=(80, 230, 110))
        canvas.draw.text((x0 + 122, y), rng.choice(_COMMANDS), font=font(17), fill=(240, 240, 240))
        y += 24
        for _ in range(rng.randint(0, 4)):
            if y < y1 - 26:
                right = x0 + int((x1 - x0) * rng.uniform(0.35, 0.9))
                canvas.words(
                    x0 + 12, y, right, rng.choice(((150, 155, 160), (190, 190, 190), (230, 190, 90))), 15
                )
                y += 21
    canvas.draw.rectangle((x0 + 12, y1 - 24, x0 + 24, y1 - 6), fill=(80, 230, 110))


def editor(canvas: Canvas) -> None:
    """A file tree, line numbers, code in many colours, a violet status bar."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((252, 252, 254), (34, 38, 56)))
    side = x0 + min(170, (x1 - x0) // 4)
    canvas.fill((x0, y0, side, y1), canvas.pick((226, 228, 240), (24, 26, 42)))
    for index, y in enumerate(range(y0 + 12, y1 - 40, 26)):
        canvas.words(x0 + 10 + 12 * (index % 3), y, side - 6, canvas.pick((90, 92, 110), (160, 165, 190)))
    colours = (
        (198, 60, 140),
        (40, 110, 200),
        (30, 150, 90),
        (210, 120, 30),
        canvas.pick((50, 50, 60), (220, 222, 235)),
    )
    indent = 0
    for number, y in enumerate(range(y0 + 10, y1 - 44, 23)):
        canvas.draw.text((side + 8, y), str(number + 1), font=font(14), fill=(140, 145, 160))
        indent = max(0, min(4, indent + rng.randint(-1, 1)))
        x = side + 44 + 26 * indent
        for _ in range(rng.randint(1, 7)):
            word = rng.choice(_CODE)
            if x > x1 - 80:
                break
            canvas.draw.text((x, y), word, font=font(16), fill=rng.choice(colours))
            x += 9 * len(word) + 10
    canvas.fill((x0, y1 - 28, x1, y1), (112, 60, 190))
    canvas.words(x0 + 12, y1 - 23, x0 + 180, (240, 235, 255))


def browser(canvas: Canvas) -> None:
    """Tabs, an address field, a large picture and columns of text."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((255, 255, 255), (44, 46, 50)))
    canvas.fill((x0, y0, x1, y0 + 44), canvas.pick((222, 226, 232), (62, 66, 74)))
    canvas.draw.rounded_rectangle(
        (x0 + 80, y0 + 8, x1 - 30, y0 + 36), 14, fill=canvas.pick((255, 255, 255), (30, 32, 36))
    )
    for index in range(3):
        canvas.draw.ellipse(
            (x0 + 10 + 22 * index, y0 + 14, x0 + 26 + 22 * index, y0 + 30), outline=(130, 135, 145), width=2
        )
    canvas.words(x0 + 98, y0 + 14, x0 + 240, (130, 135, 145))
    left, right, top = x0 + (x1 - x0) // 10, x1 - (x1 - x0) // 10, y0 + 62
    bottom = top + int((y1 - y0) * rng.uniform(0.3, 0.42))
    canvas.fill((left, top, right, bottom), (122, 190, 236))
    canvas.draw.ellipse((right - 90, top + 10, right - 40, top + 60), fill=(255, 224, 90))
    peak = rng.randint(left + (right - left) // 4, right - (right - left) // 4)
    canvas.draw.polygon([(left, bottom), (peak, top + 24), (right, bottom)], fill=(70, 130, 86))
    ink = canvas.pick((40, 44, 50), (214, 216, 220))
    canvas.words(left, bottom + 12, right, ink, 26)
    middle = (left + right) // 2
    for y in range(bottom + 52, y1 - 18, 22):
        canvas.words(left, y, middle - 40, ink)
        canvas.words(middle + 16, y, right - 24, ink)


def chat(canvas: Canvas) -> None:
    """A plum list of channels; bubbles from the left in grey and from the right in green."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((244, 246, 248), (36, 34, 42)))
    side = x0 + min(150, (x1 - x0) // 4)
    canvas.fill((x0, y0, side, y1), (78, 28, 84))
    for y in range(y0 + 14, y1 - 20, 28):
        canvas.words(x0 + 12, y, side - 10, (222, 190, 226))
    y, mine = y0 + 14, rng.random() < 0.5
    while y < y1 - 132:
        width = int((x1 - side) * rng.uniform(0.4, 0.6))
        lines = rng.randint(1, 3)
        height = 18 + 20 * lines
        left = x1 - width - 18 if mine else side + 54
        colour = (98, 206, 122) if mine else canvas.pick((214, 218, 224), (76, 76, 88))
        canvas.draw.rounded_rectangle((left, y, left + width, y + height), 16, fill=colour)
        if not mine:
            face = (rng.randint(90, 230), rng.randint(90, 200), rng.randint(90, 230))
            canvas.draw.ellipse((side + 12, y, side + 46, y + 34), fill=face)
        for line in range(lines):
            ink = (16, 50, 24) if mine else canvas.pick((40, 42, 48), (226, 226, 232))
            canvas.words(left + 14, y + 9 + 20 * line, left + width - 20, ink)
        y += height + 12
        mine = rng.random() < 0.5
    canvas.draw.rounded_rectangle(
        (side + 14, y1 - 46, x1 - 14, y1 - 10), 16, outline=(140, 140, 150), width=2
    )


def calendar(canvas: Canvas) -> None:
    """A red head line, a grid of days, events as blocks of many colours."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((255, 255, 255), (40, 42, 46)))
    canvas.fill((x0, y0, x1, y0 + 34), (232, 72, 66))
    days = 7 if x1 - x0 > 560 else 5
    line = canvas.pick((196, 200, 206), (92, 96, 104))
    step = (x1 - x0) / days
    for day in range(days):
        x = x0 + int(day * step)
        canvas.draw.text((x + 10, y0 + 8), _DAYS[day], font=font(18), fill=(255, 255, 255))
        canvas.draw.line((x, y0 + 34, x, y1), fill=line, width=3)
    for y in range(y0 + 90, y1, 56):
        canvas.draw.line((x0, y, x1, y), fill=line, width=3)
    colours = (
        (92, 160, 240),
        (250, 176, 60),
        (126, 200, 110),
        (200, 120, 220),
        (244, 110, 110),
        (80, 200, 200),
    )
    for day in range(days):
        for y in range(y0 + 38, y1 - 50, 56):
            if rng.random() < 0.38:
                x = x0 + int(day * step)
                canvas.draw.rounded_rectangle(
                    (x + 5, y, x + int(step) - 5, y + 46), 5, fill=rng.choice(colours)
                )
                canvas.words(x + 10, y + 6, x + int(step) - 14, (30, 30, 36), 13)


def mail(canvas: Canvas) -> None:
    """A list of senders with round faces and a blue selection; a letter beside it."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((250, 250, 251), (32, 34, 40)))
    ink = canvas.pick((50, 52, 58), (210, 212, 218))
    side = x0 + int((x1 - x0) * 0.42)
    rows = list(range(y0, y1 - 30, 58))
    chosen = rng.randrange(min(4, len(rows)))
    for index, y in enumerate(rows):
        if index == chosen:
            canvas.fill((x0, y, side, y + 56), (60, 132, 246))
        face = (rng.randint(120, 240), rng.randint(100, 200), rng.randint(60, 160))
        canvas.draw.ellipse((x0 + 8, y + 9, x0 + 46, y + 47), fill=face)
        text = (255, 255, 255) if index == chosen else ink
        canvas.words(x0 + 56, y + 8, x0 + 56 + (side - x0) // 2, text, 17)
        canvas.words(x0 + 56, y + 32, side - 12, text, 13)
        canvas.draw.line((x0, y + 57, side, y + 57), fill=canvas.pick((206, 208, 214), (70, 74, 84)), width=2)
    canvas.fill((side, y0, side + 3, y1), canvas.pick((206, 208, 214), (70, 74, 84)))
    canvas.words(side + 22, y0 + 14, x1 - 30, ink, 24)
    for y in range(y0 + 60, y1 - 40, 23):
        if rng.random() < 0.84:
            canvas.words(side + 22, y, x1 - rng.randint(24, 110), ink)


def notes(canvas: Canvas) -> None:
    """Ruled yellow paper with a red margin and bullets."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((255, 242, 170), (104, 88, 34)))
    rule, ink = canvas.pick((206, 188, 110), (146, 126, 62)), canvas.pick((84, 66, 30), (250, 236, 180))
    canvas.words(x0 + 76, y0 + 14, x1 - 40, ink, 28)
    for y in range(y0 + 60, y1 - 20, 34):
        canvas.draw.line((x0, y + 26, x1, y + 26), fill=rule, width=2)
        if rng.random() < 0.8:
            if rng.random() < 0.5:
                canvas.draw.ellipse((x0 + 76, y + 6, x0 + 86, y + 16), fill=ink)
            canvas.words(x0 + 96, y, x0 + 96 + int((x1 - x0 - 130) * rng.uniform(0.4, 1)), ink, 20)
    canvas.draw.line((x0 + 60, y0, x0 + 60, y1), fill=(224, 90, 80), width=4)


def design_tool(canvas: Canvas) -> None:
    """A grey work table with a white board of large shapes, tools and swatches at the sides."""
    x0, y0, x1, y1 = canvas.box
    rng = canvas.rng
    canvas.fill(canvas.box, canvas.pick((170, 174, 180), (74, 76, 82)))
    canvas.fill((x0, y0, x0 + 46, y1), canvas.pick((104, 108, 116), (48, 50, 54)))
    for y in range(y0 + 10, y1 - 34, 40):
        canvas.draw.rectangle((x0 + 11, y, x0 + 35, y + 24), outline=(226, 228, 232), width=3)
    panel = x1 - min(120, (x1 - x0) // 5)
    canvas.fill((panel, y0, x1, y1), canvas.pick((104, 108, 116), (48, 50, 54)))
    for index, y in enumerate(range(y0 + 12, y1 - 30, 34)):
        if index % 3 == 0:
            swatch = (rng.randint(60, 250), rng.randint(60, 250), rng.randint(60, 250))
            canvas.fill((panel + 10, y, x1 - 10, y + 24), swatch)
        else:
            canvas.draw.line((panel + 10, y + 12, x1 - 10, y + 12), fill=(226, 228, 232), width=3)
    board = (x0 + 70, y0 + 26, panel - 24, y1 - 26)
    canvas.fill(board, (255, 255, 255))
    for _ in range(rng.randint(4, 6)):
        x, y = (
            rng.randint(board[0], max(board[0], board[2] - 90)),
            rng.randint(board[1], max(board[1], board[3] - 90)),
        )
        size = rng.randint(60, max(64, min(board[2] - board[0], board[3] - board[1]) // 2))
        corner = (min(x + size, board[2]), min(y + size, board[3]))
        colour = rng.choice(((240, 90, 90), (70, 150, 240), (250, 190, 60), (90, 190, 130), (150, 110, 220)))
        shape = rng.randrange(3)
        if shape == 0:
            canvas.draw.ellipse((x, y, *corner), fill=colour)
        elif shape == 1:
            canvas.draw.rectangle((x, y, *corner), fill=colour)
        else:
            canvas.draw.polygon([(x, corner[1]), ((x + corner[0]) // 2, y), corner], fill=colour)


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "terminal": terminal,
    "editor": editor,
    "browser": browser,
    "chat": chat,
    "calendar": calendar,
    "mail": mail,
    "notes": notes,
    "design tool": design_tool,
}
