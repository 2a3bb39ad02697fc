"""Reasoning is not the answer; what never gets beyond it is an error that says what to do."""

import json
from pathlib import Path

import pytest
from checkpoint_edits import copy_of
from conftest import Ended, Run
from screens import folder_of

from infer.tokenizer import ChatTokenizer


@pytest.fixture
def thinking(run: Run, plain: Path, tmp_path: Path) -> Path:
    """A model whose chat template opens a <think> block, with two frames encoded."""
    model = copy_of(plain, tmp_path / "model")
    template = model / "chat_template.jinja"
    text = template.read_text()
    opened = text.replace("<|im_start|>assistant", "<|im_start|>assistant\\n<think>")
    assert opened != text
    template.write_text(opened)
    assert run("seeonce encode", folder_of(tmp_path / "images"), "--model", model).code == 0
    return model


def _describe(run: Run, model: Path, *more: object) -> Ended:
    return run("seeonce describe latest --json --prompt What? --max-tokens 3 --model", model, *more)


def _says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(ChatTokenizer, "decode", lambda self, ids: text)


def test_reasoning_that_max_tokens_cut_is_an_error_that_names_it(run: Run, thinking: Path) -> None:
    ended = _describe(run, thinking)
    assert (ended.code, ended.json["totals"]["num_errors"]) == (1, ended.json["totals"]["num_results"])
    for line in (Path(ended.json["path"]) / "results.jsonl").read_text().splitlines():
        error = json.loads(line)["error"]
        assert "thinking" in error
        assert "--max-tokens" in error


def test_reasoning_that_stops_unclosed_is_an_error_and_is_not_kept(
    run: Run, thinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _says(patch, "hm")
        assert _describe(run, thinking, "--stop", "m").code == 1
    assert _describe(run, thinking, "--stop", "m").json["totals"]["num_known"] == 0


def test_what_follows_the_reasoning_is_the_answer(
    run: Run, thinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(monkeypatch, "hm</think> a mail")
    ended = _describe(run, thinking)
    text = (Path(ended.json["path"]) / "results.jsonl").read_text()
    assert (ended.code, '"text": "a mail"' in text) == (0, True)


def test_a_run_of_empty_answers_does_not_end_well(
    run: Run, thinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _says(monkeypatch, "hm</think>")
    ended = _describe(run, thinking)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: All answers are empty")
