"""What commands print of runs: answers, figures in aligned columns, comparisons and scores."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

from cache.base.text import percent, visible
from seeonce.runs.compare import AppCount, Comparison
from seeonce.runs.prompts import clock
from seeonce.runs.run import Result, Run
from seeonce.runs.score import PromptScore

_MAX_STRETCHES = 24
_SHOWN_CHANGES = 5
_SHOWN_MIX_UPS = 10


def answer_table(results: Sequence[Result], width: int) -> str:
    """Return frames, time and text of ``results``, in ``width`` columns, one block per prompt.

    Frames that follow each other and got the same answer are one line.
    """
    prompts = dict.fromkeys(result.prompt for result in results)
    blocks = []
    for prompt in prompts:
        own = sorted((r for r in results if r.prompt == prompt), key=lambda result: result.frame)
        title = [textwrap.shorten(prompt, width, placeholder="…")] if len(prompts) > 1 else []
        blocks.append("\n".join([*title, *_stretches(own, width)]))
    return "\n\n".join(blocks)


def _stretches(results: Sequence[Result], width: int) -> list[str]:
    # What follows without a gap, and says the same, is one line: a frame in between was not looked at.
    number_of = {frame: number for number, frame in enumerate(dict.fromkeys(one.frame for one in results))}
    alike = groupby(results, key=lambda one: (one.frame - number_of[one.frame], _text(one)))
    stretches = [list(group) for _, group in alike]
    wide = max(6, *(len(clock(stretch[0].timestamp_s)) for stretch in stretches[:_MAX_STRETCHES]))
    lines = [line for stretch in stretches[:_MAX_STRETCHES] for line in _lines(stretch, wide, width)]
    hidden = sum(len(stretch) for stretch in stretches[_MAX_STRETCHES:])
    more = [f"  … and {hidden} more frames in the results"] if hidden else []
    return [f"  frame {'time':>{wide}}  answer", *lines, *more]


def _lines(stretch: Sequence[Result], wide: int, width: int) -> list[str]:
    first, last = stretch[0].frame, stretch[-1].frame
    frames = str(first) if first == last else f"{first}-{last}"
    indent = f"{frames:>7} {clock(stretch[0].timestamp_s):>{wide}}  "
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


def runs_table(runs: Sequence[Run], width: int) -> str:
    """Return a line of figures a run under a heading, and what was asked below it; nothing without runs."""
    head = ("id", "date", "frames", "tokens", "time", "parsed", "state")
    return aligned(head, map(_run_row, runs), [_run_words(run) for run in runs], width)


def _run_row(run: Run) -> tuple[str, ...]:
    info = run.info
    return (
        info.id,
        local_time(info.started_at),
        str(run.num_frames),
        f"{run.prompt_tokens + run.completion_tokens:,}",
        f"{info.totals.seconds:.1f} s" if info.totals.seconds else "–",
        percent(run.parse_rate),
        run.state,
    )


def _run_words(run: Run) -> str:
    info = run.info
    prompts = f"{len(info.prompts)} prompts: " if len(info.prompts) > 1 else ""
    parts = (
        short(info.name, 60),
        short(info.recording, 60),
        short(info.model.rstrip("/").rpartition("/")[2], 40),
        info.settings_in_words,
        prompts + short(info.prompts[0] if info.prompts else "", 48),
    )
    return " · ".join(part for part in parts if part)


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[str], width: int) -> str:
    """Return rows in aligned columns under a heading, and below each its words, broken at ``width``.

    Columns whose cells begin with a digit or stand for a missing one, but the first, are set to the right.
    The last columns stand among the words where ``width`` is too small for them.
    """
    table = [tuple(head), *map(tuple, rows)]
    if len(table) == 1:
        return ""
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    num_beside = len(widths)
    while num_beside > 1 and sum(widths[:num_beside]) + 2 * (num_beside - 1) > width:
        num_beside -= 1
    right = [
        number > 0 and all(re.fullmatch(r"[\d.,:]+( s| %)?|–", cell) for cell in column[1:])
        for number, column in enumerate(columns)
    ]
    lines = []
    for row, below in zip(table, ["", *words], strict=True):
        cells = [
            cell.rjust(wide) if is_right else cell.ljust(wide)
            for cell, wide, is_right in zip(row[:num_beside], widths, right, strict=False)
        ]
        lines += textwrap.wrap("  ".join(cells).rstrip(), width, break_on_hyphens=False)
        if row is not table[0]:
            named = [f"{name} {cell}" for name, cell in zip(head, row, strict=True)][num_beside:]
            below = " · ".join([*named, *filter(None, [below])])
        lines += textwrap.wrap(below, width, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def local_time(iso: str) -> str:
    """Return a time in the zone of this machine, and name it: 2026-11-27 10:05 CET; what is no time stays."""
    try:
        found = datetime.fromisoformat(iso)
    except ValueError:
        return visible(iso[:20]) or "–"
    in_utc = found if found.tzinfo else found.replace(tzinfo=UTC)
    return f"{in_utc.astimezone():%Y-%m-%d %H:%M %Z}"


def comparison_text(found: Comparison, width: int) -> str:
    """Return a comparison for a human, in ``width`` columns."""
    lines = [
        f"A  {short(found.left, width - 3)}",
        f"B  {short(found.right, width - 3)}",
        f"frames       {found.num_frames} in both, {found.num_left_only} in A alone, "
        f"{found.num_right_only} in B alone, {found.num_failed} errors",
        f"agreement    {percent(found.agreement)} equal",
        f"similarity   {found.mean_similarity:.3f} on average",
        f"match rate   {percent(found.match_rate)} above 0.8",
        f"apps         in A alone: {_apps(found.apps_left_only)}; in B alone: {_apps(found.apps_right_only)}",
    ]
    if found.changed_most:
        lines.append("changed most")
    for change in found.changed_most[:_SHOWN_CHANGES]:
        lines += [
            f"  frame {change.frame}, similarity {change.similarity:.2f}",
            f"    A  {short(change.left, width - 7)}",
            f"    B  {short(change.right, width - 7)}",
        ]
    return _broken(lines, width)


def score_text(score: PromptScore, width: int) -> str:
    """Return the scores of one prompt for a human, in ``width`` columns."""
    lines = [
        short(score.prompt, width),
        f"exact        {score.num_exact} of {score.num_scored} ({percent(score.exact)})",
    ]
    for name, found in (("apps", score.apps), ("topics", score.topics)):
        if found is not None:
            lines.append(f"{name:<12} {found}")
    lines.append(f"mix-ups      {len(score.mix_ups)}")
    lines += [
        f"  frame {one.frame} got frame {one.like_frame}'s answer: fits it by {one.other_score:.2f}, its own "
        f"by {one.own_score:.2f}"
        for one in score.mix_ups[:_SHOWN_MIX_UPS]
    ]
    if len(score.mix_ups) > _SHOWN_MIX_UPS:
        lines.append(f"  … and {len(score.mix_ups) - _SHOWN_MIX_UPS} more: see --json")
    return _broken(lines, width)


def _broken(lines: Iterable[str], width: int) -> str:
    return "\n".join(textwrap.fill(line, width, subsequent_indent=" " * 13) for line in lines)


def _apps(counts: Sequence[AppCount]) -> str:
    named = ", ".join(f"{short(one.app, 30)} ({one.num_frames})" for one in counts[:6])
    return named + (", …" if len(counts) > 6 else "") or "none"


def short(text: str, width: int) -> str:
    """Return a text on one line of at most ``width`` characters."""
    return textwrap.shorten(visible(text[: 4 * width]), width, placeholder="…")
