"""True answers in words, and counting them."""

from pathlib import Path

import pytest

from seeonce.demo.questions import (
    CHANGE_QUESTION,
    DEFAULT_PROMPT,
    QUESTIONS,
    answers,
    change_answer,
)
from seeonce.demo.scene import Pane, Scene, Window
from seeonce.demo.score import Expected, Result, TruthError, is_true, question_of, read_truth, score

BOX = (0, 0, 10, 10)
EDITOR = Window(Pane("editor", "login", 0), BOX, focused=False)
CHAT = Window(Pane("chat", "music", 0), BOX, focused=True)
BOTH = Scene((1280, 800), "dark", "columns", (EDITOR, CHAT), 0, 0)
ALONE = Scene((1280, 800), "dark", "full", (CHAT,), 0, 0)


def test_answers_name_windows_in_order_and_the_focused_one_as_activity() -> None:
    assert answers(BOTH) == {
        "description": (
            "description: editor on the left, chat on the right, dark desktop"
            " | activity: chatting about music | apps: [editor, chat] | topics: [login, music]"
        ),
        "apps": "editor, chat",
        "topics": "login, music",
        "activity": "chatting about music",
        "windows": "2",
    }


def test_a_change_names_the_applications_before_and_after() -> None:
    assert change_answer(BOTH, ALONE) == "before: [editor, chat] | after: [chat]"


def test_every_text_belongs_to_one_question() -> None:
    texts = [text for known in (*QUESTIONS.values(), CHANGE_QUESTION) for text in known]
    assert len(set(texts)) == len(texts)
    assert question_of(DEFAULT_PROMPT) == "description"
    assert question_of(CHANGE_QUESTION[1]) == "change"
    assert question_of("Who painted this?") is None


def expected() -> Expected:
    return {"a.png": answers(BOTH), "b.png": answers(ALONE)}


def test_an_answer_is_true_when_it_is_exact() -> None:
    assert is_true(Result(("a.png",), "How many windows are open?", " 2\n"), expected())
    assert is_true(Result(("a.png",), "How many windows are open?", "2 windows"), expected()) is False
    assert is_true(Result(("a.png", "b.png"), CHANGE_QUESTION[0], change_answer(BOTH, ALONE)), expected())


def test_an_unknown_frame_or_question_is_not_judged() -> None:
    assert is_true(Result(("z.png",), DEFAULT_PROMPT, ""), expected()) is None
    assert is_true(Result(("a.png",), "Who painted this?", ""), expected()) is None


def test_scores_count_each_question_and_its_paraphrases() -> None:
    results = [Result(("a.png",), text, "2") for text in QUESTIONS["windows"]]
    results.append(Result(("a.png",), DEFAULT_PROMPT, "nonsense"))
    got = {name: (sum(true), len(true)) for name, true in score(results, expected()).items()}
    assert got == {"description": (0, 1), "windows": (4, 4)}


def test_a_missing_truth_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match=r"python -m seeonce\.demo\.screens"):
        read_truth(tmp_path / "truth.csv")
