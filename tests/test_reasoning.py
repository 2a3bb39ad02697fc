"""Reasoning is not the answer; what never gets beyond it is an error that says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_edits import copy_of
from conftest import Ended, Run
from screens import folder_of

from checkpoint.folder import find_checkpoint
from infer.request import Text
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


def _encoded(run: Run, model: Path, images: Path) -> Path:
    assert run("seeonce encode", folder_of(images), "--model", model).code == 0
    return model


def _lines(ended: Ended) -> list[dict[str, Any]]:
    text = (Path(ended.json["path"]) / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_template_with_a_switch_is_asked_not_to_think_unless_thinking_is_asked_for(qwen3_5: Path) -> None:
    tokenizer = ChatTokenizer(find_checkpoint(str(qwen3_5), print))
    silent, thinks = (tokenizer.encode((Text("What?"),), thinking=thinking).ids for thinking in (False, True))
    assert tokenizer.decode(silent).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(thinks).endswith("assistant\n<think>\n")
    assert (tokenizer.opens_think(False), tokenizer.opens_think(True)) == (False, True)


def test_thinking_keeps_the_reasoning_apart_and_known_with_the_answer(
    run: Run, qwen3_5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _encoded(run, qwen3_5, tmp_path / "images")
    _says(monkeypatch, "hm</think> a mail")
    first = _lines(_describe(run, qwen3_5, "--thinking"))
    assert {(line["text"], line["reasoning"]) for line in first} == {("a mail", "hm")}
    again = _describe(run, qwen3_5, "--thinking", "--prompt", "More?")
    assert again.json["totals"]["num_known"] == len(first)
    assert {(line["text"], line["reasoning"]) for line in _lines(again)} == {("a mail", "hm")}
    _says(monkeypatch, "a mail")
    silent = _describe(run, qwen3_5)
    assert silent.json["totals"]["num_known"] == 0
    assert all("reasoning" not in line for line in _lines(silent))


def test_thinking_is_refused_in_one_line_where_it_cannot_be(
    run: Run, thinking: Path, qwen3_5: Path, tmp_path: Path
) -> None:
    assert "has no switch for --thinking" in _describe(run, thinking, "--thinking").error
    plain = copy_of(qwen3_5, tmp_path / "plain")
    template = plain / "chat_template.jinja"
    template.write_text(template.read_text().replace("enable_thinking", "reason"))
    _encoded(run, qwen3_5, tmp_path / "images5")
    assert "has no switch for --thinking" in _describe(run, plain, "--thinking").error
    assert "--schema" in _describe(run, qwen3_5, "--thinking", "--schema", "description").error


def test_an_experiment_says_whether_to_think(run: Run, qwen3_5: Path, tmp_path: Path) -> None:
    _encoded(run, qwen3_5, tmp_path / "images")
    file = tmp_path / "both.toml"
    prompts = '[prompts]\nsilent = "What?"\nthinks = { text = "What?", thinking = true }\n'
    file.write_text(f'recordings = ["latest"]\nmodels = ["{qwen3_5}"]\nsampling.max_tokens = 3\n{prompts}')
    silent, thinks = run("seeonce run --json", file).json
    assert (silent["run"]["manner"]["thinking"], thinks["run"]["manner"]["thinking"]) == (False, True)
    file.write_text(file.read_text().replace("= true", '= "yes"'))
    assert "prompts.thinks.thinking" in run("seeonce run --json", file).error
