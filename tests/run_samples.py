"""Runs made by hand: answers about imagined frames, for the tests of what is made of runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from infer.request import Usage
from seeonce.runs.parse import parse_description
from seeonce.runs.run import Result, Run, RunInfo, Totals


def answer(
    frame: int,
    text: str,
    prompt: str = "What is it?",
    *,
    error: str | None = None,
    key: str = "",
    source: str = "",
    finish_reason: str = "stop",
    recording: str = "monday",
) -> Result:
    """Return what a prompt said of a frame."""
    return Result(
        recording=recording,
        frame=frame,
        timestamp_s=frame * 10.0,
        source=source or f"/frames/{frame:04}.png",
        key=key or f"{frame:064x}",
        prompt_id=prompt.casefold(),
        prompt=prompt,
        text=text,
        finish_reason="error" if error else finish_reason,
        usage=Usage(100, len(text.split())),
        parsed=parse_description(text),
        error=error,
    )


def line(description: str, activity: str = "reading", apps: str = "mail", topics: str = "billing") -> str:
    """Return a description line."""
    return f"description: {description} | activity: {activity} | apps: [{apps}] | topics: [{topics}]"


def run_of(results: Sequence[Result], run_id: str = "20261121-100000-aaaa", **settings: Any) -> Run:
    """Return a finished run; ``settings`` are fields of its run.json."""
    info = RunInfo(
        id=run_id,
        recording=results[0].recording if results else "monday",
        encoder_id="e" * 64,
        model="a-model",
        prompts=tuple(dict.fromkeys(result.prompt for result in results)),
        started_at="2026-11-21T10:00:00Z",
        status="done",
        totals=Totals(seconds=4.0),
    )
    return Run(replace(info, **settings), tuple(results), "done")


def big_run(num_frames: int, num_prompts: int, key_of: Callable[[int], str]) -> Run:
    """Return a run whose prompts agree on most frames, with a few failures."""
    activities = ("answering mail", "writing code", "reading a page", "planning the week")
    apps = ("mail", "editor, terminal", "browser", "calendar, notes")
    results = []
    for frame in range(num_frames):
        at = frame // 9 % 4
        for number in range(num_prompts):
            extra = " in the light of the afternoon" if (frame + number) % 5 == 0 else ""
            about = f"the screen shows {apps[at]} side by side, with a page about billing {frame // 3}{extra}"
            text = line(about, activities[(at + (number == 5)) % 4], apps[at], "billing, hiring")
            failed = frame == 17 and number == 2
            results.append(
                answer(
                    frame,
                    "" if failed else text,
                    f"Describe this screenshot in way {number}.",
                    error="the context is full" if failed else None,
                    key=key_of(frame),
                )
            )
    return run_of(results)
