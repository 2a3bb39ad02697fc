"""``describe`` with several frames a prompt, templates, system texts and several recordings, as typed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, HomeAfter, Run
from screens import folder_of

from infer.engine import Engine
from infer.tokenizer import ChatTokenizer


@pytest.fixture
def demo(home: Path, home_after: HomeAfter) -> None:
    """The first five frames of the demo, encoded."""
    shutil.copytree(home_after(("seeonce encode demo --limit 5",)), home)


def _lines(ended: Ended) -> list[dict[str, Any]]:
    lines = (Path(ended.json["path"]) / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda line: (line["group"], line["frame"]))


def _says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let the model say ``text``, whatever its tokens are."""
    monkeypatch.setattr(ChatTokenizer, "decode", lambda self, ids: text)


def test_each_frame_has_its_own_line_and_one_left_out_is_an_error(
    run: Run, demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(monkeypatch, "**Frame 1:** a mail\nframe 3 (0:20) : a page")
    ended = run("seeonce describe demo --json --frames-per-prompt 3 --max-tokens 4 --prompt Apps?")
    lines = _lines(ended)
    assert ended.code == 3
    assert [line["group"] for line in lines] == [[0, 1, 2]] * 3 + [[3, 4]] * 2
    assert [line["text"] for line in lines] == ["a mail", "", "a page", "a mail", ""]
    assert [line["error"] is None for line in lines] == [True, False, True, True, False]
    assert "no line for Frame 2" in lines[1]["error"]
    totals, tokens = ended.json["totals"], [lines[0]["usage"], lines[3]["usage"]]
    assert totals["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in tokens)
    assert (totals["num_results"], totals["num_errors"], totals["num_images"]) == (5, 2, 5)


def test_description_lines_are_read_frame_by_frame(
    run: Run, demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "description: {0} | activity: reading | apps: [mail] | topics: []"
    _says(monkeypatch, "\n".join(f"Frame {n}: {said.format(n)}" for n in (1, 2)))
    lines = _lines(run("seeonce describe demo --json --frames-per-prompt 2 --stride 1 --max-tokens 4"))
    assert [line["group"] for line in lines] == [[n, n + 1] for n in range(4) for _ in range(2)]
    assert [line["parsed"]["description"] for line in lines] == ["1", "2"] * 4


def test_more_frames_than_there_are_make_one_group(run: Run, demo: None) -> None:
    lines = _lines(run("seeonce describe demo --json --frames-per-prompt 99 --max-tokens 2"))
    assert [line["group"] for line in lines] == [[0, 1, 2, 3, 4]] * 5


def test_a_run_of_groups_goes_on_by_whole_groups(
    run: Run, demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(monkeypatch, "Frame 1: a\nFrame 2: b")
    words = "--frames-per-prompt 2 --stride 1 --max-tokens 3 --fresh --prompt A?"
    first = run(f"seeonce describe demo --json {words}")
    whole, path = _lines(first), Path(first.json["path"])
    text = (path / "results.jsonl").read_text().splitlines(keepends=True)
    (path / "results.jsonl").write_text("".join(text[:3]))
    resumed = run("seeonce describe --json --resume latest")
    assert (resumed.code, _lines(resumed)) == (0, whole)
    assert resumed.json["totals"]["prompt_tokens"] == first.json["totals"]["prompt_tokens"]


def _asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the texts that the model is shown, images as [n]."""
    shown: list[str] = []
    real = Engine.answer

    def noting(self: Engine, requests: Any, *rest: Any, **more: Any) -> Any:
        for request in requests:
            parts = [getattr(part, "text", None) or f"[{part.frame.index}]" for part in request.segments]
            shown.append("".join([f"<{request.system}>" if request.system else "", *parts]))
        return real(self, requests, *rest, **more)

    monkeypatch.setattr(Engine, "answer", noting)
    return shown


def test_templates_system_text_and_image_position_reach_the_model(
    run: Run, demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _asked(monkeypatch)
    (tmp_path / "system.txt").write_text("Be brief.\n")
    words = ("--prompt", 'At {timestamp} ({frame}) {"a": {}}', "--system-file", tmp_path / "system.txt")
    ended = run("seeonce describe demo --json --max-tokens 2 --image-position after", *words)
    assert shown[:2] == [f'<Be brief.>At 0:{n}0 ({n}) {{"a": {{}}}}[{n}]' for n in (0, 1)]
    showing = ended.json["showing"]
    assert (showing["system"], showing["image_position"]) == ("Be brief.", "after")


@pytest.mark.parametrize(
    "words", [("--system", " "), ("--system", "a", "--system-file", "b"), ("--system-file", "nowhere")]
)
def test_a_system_text_that_is_none_is_refused(words: tuple[str, ...], run: Run, demo: None) -> None:
    assert "system" in run("seeonce describe demo", *words).error.replace("nowhere", "system")


ODD = [
    "<|image_pad|>",
    "{",
    "}{",
    "{frame",
    "🙂👩‍👩‍👧 e\u0301",
    "שלום \u202e עולם",
    "\x00\x1b[31m",
    "Frame 2: x",
    "x" * 600,
]


@pytest.mark.parametrize("frames", [1, 2])
def test_odd_prompts_are_asked_as_they_are(frames: int, run: Run, plain: Path, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "odd", 2)
    assert run("seeonce encode", images, "--model", plain).code == 0
    prompts = [word for prompt in ODD for word in ("--prompt", prompt)]
    ended = run(
        "seeonce describe odd --json --max-tokens 2 --frames-per-prompt", frames, "--model", plain, *prompts
    )
    lines = _lines(ended)
    assert {line["prompt"] for line in lines} == set(ODD)
    left_out = [line["error"] for line in lines if line["error"] and "no line for Frame" not in line["error"]]
    assert left_out == []


def test_a_prompt_of_100_kb_is_an_error_of_its_own(run: Run, demo: None) -> None:
    ended = run("seeonce describe demo --json --max-tokens 2 --prompt short --prompt", "word " * 20_000)
    errors = {len(line["prompt"]): line["error"] for line in _lines(ended)}
    assert ended.code == 3
    assert errors[5] is None
    assert "context" in errors[100_000]


def test_several_recordings_make_a_run_each_and_one_that_fails_costs_no_other(
    run: Run, plain: Path, tmp_path: Path
) -> None:
    folders = [folder_of(tmp_path / name, 2, first=first) for first, name in ((0, "one"), (10, "two"))]
    for folder in folders:
        assert run("seeonce encode", folder, "--model", plain).code == 0
    output = tmp_path / "all.jsonl"
    words = ("--json", "--max-tokens", 2, "--output", output, "--model", plain)
    ended = run("seeonce describe one nowhere two one", *words)
    assert (ended.code, "nowhere" in ended.error) == (3, True)
    runs = [json.loads(line) for line in ended.out.splitlines()]
    assert [found["recording"][:3] for found in runs] == ["one", "two"]
    written = [json.loads(line)["recording"] for line in output.read_text().splitlines()]
    assert written == [found["recording"] for found in runs for _ in range(2)]


def test_recordings_that_all_fail_are_an_error(run: Run, demo: None) -> None:
    ended = run("seeonce describe nowhere elsewhere")
    assert (ended.code, ended.err.count("error: ")) == (1, 2)


def test_without_sharing_each_prompt_prefills_its_image_again(run: Run, demo: None) -> None:
    words = "seeonce describe demo --json --fresh --max-tokens 2 --prompt A? --prompt B? --prompt C?"
    shared, whole = run(words).json["totals"], run(f"{words} --no-sharing").json["totals"]
    assert (shared["num_images"], shared["num_images_again"]) == (2, 0)  # the five show two pictures
    assert (whole["num_images"], whole["num_images_again"]) == (15, 13)
