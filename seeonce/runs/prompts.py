"""Prompts as the user writes them, and the segments by which a request shows frames and asks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blake3 import blake3

from cache.base.errors import InputError
from cache.base.text import printable, user_path
from cache.manifest import FrameEntry
from infer.request import Image, Segment, Text
from infer.schema import DESCRIPTION, check_schema

DEFAULT_PROMPT = (
    "Describe this screenshot in one line, exactly in this format: description: what is on the screen | "
    "activity: what the user is doing | apps: [applications] | topics: [topics]"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question that is asked of every frame."""

    text: str

    @property
    def prompt_id(self) -> str:
        """Twelve hex digits of the text's BLAKE3: the same text has the same id in every run."""
        return blake3(self.text.encode()).hexdigest()[:12]

    def segments(self, frame: FrameEntry) -> tuple[Segment, ...]:
        """Show one frame, then ask: the image first, as mlx-vlm places it for Qwen3-VL."""
        return (Image(frame), Text(self.text))


def collect_prompts(texts: list[str], files: list[Path]) -> tuple[Prompt, ...]:
    """Return the prompts given as texts and as files, in that order; the default without any.

    Raises:
        InputError: a prompt is empty, or a file is missing or not text.
    """
    prompts = [Prompt(_not_empty(text, "--prompt")) for text in texts]
    prompts += [
        Prompt(_not_empty(_read(path, "prompt file"), f"prompt file {printable(path)}")) for path in files
    ]
    return tuple(dict.fromkeys(prompts)) or (Prompt(DEFAULT_PROMPT),)


def read_system(text: str | None, file: Path | None) -> str | None:
    """Return the system text, given as such or in a file.

    Raises:
        InputError: it is given twice, empty, or cannot be read.
    """
    if text is not None and file is not None:
        raise InputError("--system and --system-file were both given: give one.")
    if file is not None:
        text = _read(file, "system text file")
    if text is not None and not text.strip():
        raise InputError("The system text is empty: write it, or leave out --system and --system-file.")
    return None if text is None else _utf8(text, "system text")


def read_schema(name: str, folder: Path = Path(), where: str = "--schema") -> str:
    """Return a schema as text: ``description``, or the JSON of the file that ``name`` is.

    A relative name is one in ``folder``; ``where`` is what an error says of where the name was given.

    Raises:
        InputError: there is no such file, it is no JSON Schema, or llguidance cannot follow it.
    """
    if name == DESCRIPTION:
        return DESCRIPTION
    given = f"{where} {printable(name)}"
    try:
        text = (folder / user_path(name)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{given} cannot be read ({error}): give a file of JSON Schema, or {DESCRIPTION}."
        ) from error
    check_schema(text, given)
    return text


def _read(path: Path, what: str) -> str:
    try:
        return user_path(path).read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise InputError(f"There is no {what} {printable(path)}: check its name.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} {printable(path)} cannot be read as UTF-8 text ({error}).") from error


def _not_empty(text: str, where: str) -> str:
    if not text.strip():
        raise InputError(
            f"The {where} is empty: write the question into it, or leave it out for the default."
        )
    return _utf8(text, where)


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"The {where} is not valid UTF-8: write it in UTF-8.") from None
    return text


_PLACEHOLDER = re.compile(r"\{(timestamp|frame|recording)\}")


def render(text: str, values: Mapping[str, str]) -> str:
    """Fill in a template: ``values`` are those of timestamp, frame and recording."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def clock(seconds: float) -> str:
    """Return a time as people read it: 0:42, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ImagePosition(StrEnum):
    """Where the images stand in a prompt; before its text, so that prompts share their beginning."""

    before = "before"
    after = "after"


@dataclass(frozen=True, slots=True)
class Showing:
    """How frames are shown: how many together, how far from one group to the next, under what words.

    ``stride`` ``None`` is ``frames_per_prompt``: no overlap, no gap. ``thinking`` lets the model reason
    before it answers.
    """

    frames_per_prompt: int = 1
    stride: int | None = None
    image_position: ImagePosition = ImagePosition.before
    system: str | None = None
    thinking: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--frames-per-prompt", self.frames_per_prompt), ("--stride", self.stride)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1.")

    def groups(self, frames: Sequence[FrameEntry]) -> list[tuple[FrameEntry, ...]]:
        """Return the frames that go together; the last group may be short, none lies within another."""
        step = self.stride or self.frames_per_prompt
        groups: list[tuple[FrameEntry, ...]] = []
        for start in range(0, len(frames), step):
            groups.append(tuple(frames[start : start + self.frames_per_prompt]))
            if start + self.frames_per_prompt >= len(frames):
                break
        return groups

    def segments(self, text: str, frames: Sequence[FrameEntry], recording: str) -> tuple[Segment, ...]:
        """Show ``frames`` and ask ``text``, its placeholders filled in."""
        question = render(text, _values(frames, recording))
        if self.frames_per_prompt == 1:
            images: tuple[Segment, ...] = (Image(frames[0]),)
        else:
            images = ()
            for number, frame in enumerate(frames, 1):
                newline = "" if number == 1 else "\n"
                head = Text(f"{newline}Frame {number} ({clock(frame.timestamp_s)}): ")
                images += (head, Image(frame))
            question = f"\n{question}" if self.image_position is ImagePosition.before else question
            question += _INSTRUCTION.format(last=len(frames))
        if self.image_position is ImagePosition.before:
            return (*images, Text(question))
        return (Text(question + ("\n\n" if self.frames_per_prompt > 1 else "")), *images)


_INSTRUCTION = (
    "\n\nAnswer for every frame, each on a line of its own that begins with its number, "
    "from Frame 1: to Frame {last}:"
)

_NAMED = r"\bframe[ \t]*#?[ \t]*(?P<number>\d{1,6})\b[*_]*[ \t]*(?:\([^()\n]{0,40}\))?[ \t*_\]]*"
# "Frame 2:", "**frame 2 (0:42)**:", "2. Frame2 :", "## Frame 2 -", "### Frame 2" alone on a line.
_AT_LINE_START = re.compile(
    r"^[ \t*_>#\-\[•]*(?:\d{1,6}[.)][ \t*_]*)?" + _NAMED + r"(?:[:：\-–—]|$)[ \t*_]*", re.I | re.M
)
# Within a line only a colon makes a heading.
_WITHIN = re.compile(_NAMED + r"[:：][ \t*_]*", re.I)


def split_by_frame(text: str, num_frames: int) -> tuple[str | None, ...]:
    """Return what an answer says of each frame, ``None`` for one that it leaves out.

    A heading counts at the beginning of a line; within a line only for a frame that has no such line, and
    only right after the frame before it: "Frame 2: as in Frame 1: a mail" has one heading. What is said of a
    frame first counts.
    """
    headings = _headings(text)
    if not headings and num_frames == 1:
        return (text.strip() or None,)
    ends = [*(match.start() for match in headings[1:]), len(text)]
    parts: dict[int, str] = {}
    for match, end in zip(headings, ends, strict=False):
        parts.setdefault(int(match["number"]), text[match.end() : end].strip())
    return tuple(parts.get(number) or None for number in range(1, num_frames + 1))


def _headings(text: str) -> list[re.Match[str]]:
    """Return the headings in their order; those that name no frame that was shown end a part, too."""
    own_line = list(_AT_LINE_START.finditer(text))
    numbers = {int(match["number"]) for match in own_line}
    taken = {match.start("number") for match in own_line}
    within = [match for match in _WITHIN.finditer(text) if match.start("number") not in taken]
    found: list[re.Match[str]] = []
    for match in sorted([*own_line, *within], key=lambda match: match.start("number")):
        number = int(match["number"])
        follows = number == (int(found[-1]["number"]) + 1 if found else 1)
        if match.start("number") in taken or (number not in numbers and follows):
            found.append(match)
    return found


def _values(frames: Sequence[FrameEntry], recording: str) -> dict[str, str]:
    """Return what the placeholders stand for; several frames give a range."""
    first, last = frames[0], frames[-1]
    time, number = clock(first.timestamp_s), str(first.index)
    if len(frames) > 1:
        time, number = f"{time}-{clock(last.timestamp_s)}", f"{number}-{last.index}"
    return {"timestamp": time, "frame": number, "recording": recording}
