"""Answers as a short table for the terminal: one line per stretch of frames that got the same answer."""

import textwrap
from collections.abc import Sequence
from itertools import groupby

from seeonce.runs.run import Result

_MAX_STRETCHES = 24


def answer_table(results: Sequence[Result], width: int) -> str:
    """Return frames, time and text of ``results``, in ``width`` columns, one block per prompt."""
    prompts = dict.fromkeys(result.prompt for result in results)
    blocks = []
    for prompt in prompts:
        own = sorted((r for r in results if r.prompt == prompt), key=lambda result: result.frame)
        title = [textwrap.shorten(prompt, width, placeholder="…")] if len(prompts) > 1 else []
        blocks.append("\n".join([*title, *_stretches(own, width)]))
    return "\n\n".join(blocks)


def _stretches(results: Sequence[Result], width: int) -> list[str]:
    stretches = [list(group) for _, group in groupby(results, key=_text)]
    lines = [line for stretch in stretches[:_MAX_STRETCHES] for line in _lines(stretch, width)]
    hidden = sum(len(stretch) for stretch in stretches[_MAX_STRETCHES:])
    more = [f"  … and {hidden} more frames in the results"] if hidden else []
    return ["  frame   time  answer", *lines, *more]


def _lines(stretch: Sequence[Result], width: int) -> list[str]:
    first, last = stretch[0].frame, stretch[-1].frame
    frames = str(first) if first == last else f"{first}-{last}"
    indent = f"{frames:>7} {_clock(stretch[0].timestamp_s):>6}  "
    text = textwrap.shorten(_text(stretch[0]), 4 * (width - len(indent)), placeholder="…") or "(nothing)"
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=" " * len(indent))


def _text(result: Result) -> str:
    """Return what is worth reading: the fields of a parsed line, the text, or the error."""
    text, parsed = result.text, result.description
    if result.error is not None:
        text = f"error: {result.error}"
    elif parsed is not None:
        lists = f"{', '.join(parsed.apps)} · {', '.join(parsed.topics)}"
        text = f"{parsed.description} · {parsed.activity} · {lists}"
    # A model's words must not move the cursor or colour the terminal.
    return "".join(character if character.isprintable() else " " for character in text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
