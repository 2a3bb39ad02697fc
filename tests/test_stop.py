"""Stop strings and endless repetition, as typed: where an answer ends and what its line says."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from infer.sampling import StopStringWatch, before_stop

APPS = "Which applications are open?"


def _decode(tokens: Any) -> str:
    """Read each token as one byte, as byte-level tokenizers may."""
    return bytes(tokens).decode("utf-8", "replace")


def _seen(text: str, *stop: str) -> str | None:
    """Return what had been said when a watch over single bytes ended it."""
    watch = StopStringWatch(stop, _decode)
    for number, byte in enumerate(text.encode(), 1):
        if watch.seen(byte) == "stop":
            return text.encode()[:number].decode("utf-8", "replace")
    return None


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("mail and calendar", "and"), ("end", "end"), ("aaab", "aab"), ("a\n\nb", "\n\n"),
        ("drawn 🙂 here", "🙂"), ("שלום עולם", "עולם"), ("e\u0301x", "\u0301"),
    ],
)  # fmt: skip
def test_a_stop_string_is_seen_the_moment_it_is_complete(text: str, stop: str) -> None:
    seen = _seen(text, stop)
    assert seen is not None
    assert seen.endswith(stop)
    assert before_stop(seen, [stop]) == text[: text.find(stop)]


def test_the_first_of_several_counts_and_half_of_one_does_not() -> None:
    assert _seen("one two three", "three", "two") == "one two"
    assert _seen("one tw", "two") is None
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one", ["two"]) == "one"


def _described(run: Run, *words: object) -> list[dict[str, Any]]:
    ended = run("seeonce describe demo --json", *words)
    text = (Path(ended.json["path"]) / "results.jsonl").read_text(encoding="utf-8")
    lines = sorted(map(json.loads, text.splitlines()), key=lambda line: (line["prompt"], line["frame"]))
    assert ended.code == (0 if any(line["text"] for line in lines) else 1), ended.err
    return lines


def test_an_answer_is_cut_before_its_stop_string_across_token_borders(run: Run, demo: None) -> None:
    whole = _described(run)
    long = whole[0]["text"]
    for stop in (long[15:23], long[:3], long, long[-1]):
        cut = _described(run, "--stop", stop)
        for before, after in zip(whole, cut, strict=True):
            assert after["text"] == before_stop(before["text"], [stop]).strip()
            assert after["finish_reason"] == "stop"
            assert after["usage"]["completion_tokens"] <= before["usage"]["completion_tokens"]


def test_a_stop_string_in_the_prompt_ends_nothing(run: Run, demo: None) -> None:
    assert {line["text"] for line in _described(run, "--prompt", APPS, "--stop", "applications")} == {
        "mail",
        "mail, calendar",
    }


def test_log_probabilities_are_in_the_lines_and_survive_the_cache(run: Run, demo: None) -> None:
    first = _described(run, "--prompt", APPS, "--logprobs", 2)
    again = _described(run, "--prompt", APPS, "--logprobs", 2)
    assert [line["logprobs"] for line in again] == [line["logprobs"] for line in first]
    for line in first:
        assert len(line["logprobs"]) == line["usage"]["completion_tokens"]
        assert "".join(token["text"] for token in line["logprobs"]).strip() == line["text"]
        assert all(len(token["top"]) == 2 for token in line["logprobs"])
        assert all(token["logprob"] == token["top"][0]["logprob"] <= 0 for token in line["logprobs"])
    assert _described(run, "--prompt", APPS)[0]["logprobs"] is None


def test_an_answer_that_repeats_itself_is_ended_and_says_so(run: Run, demo: None) -> None:
    words = ("--prompt", APPS, "--max-tokens", 400, "--repetition-penalty", 0.1, "--repetition-window", 1)
    lines = _described(run, *words)
    assert {line["finish_reason"] for line in lines} == {"repetition"}
    assert all(96 <= line["usage"]["completion_tokens"] < 200 for line in lines)
