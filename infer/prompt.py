"""What is asked: prompts as the user writes them, and the segments that one request shows the model.

Owns the default prompt and the order of text and frames. Knows nothing of tokens.
"""

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from cache.errors import InputError
from cache.manifest import FrameEntry
from cache.places import printable
from cache.user_path import user_path

DEFAULT_PROMPT = (
    "Describe this screenshot in one line, exactly in this format: description: what is on the screen | "
    "activity: what the user is doing | apps: [applications] | topics: [topics]"
)


@dataclass(frozen=True, slots=True)
class Text:
    """Words of the user; nothing in them is ever read as a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A frame that is shown at this place, from its stored features."""

    frame: FrameEntry


Segment = Text | Image


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
    """Return the prompts given as texts and as files, in that order; the default when there is none.

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
