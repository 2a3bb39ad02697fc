"""True answers in words, and counting them."""

from PIL import Image

from seeonce.demo.evaluate import evaluate
from seeonce.demo.paint import paint
from seeonce.demo.questions import (
    CHANGE_QUESTION,
    DEFAULT_PROMPT,
    QUESTIONS,
    answers,
    change_answer,
)
from seeonce.demo.scene import Pane, Scene, Window, sample_scene
from seeonce.demo.screens import size_of

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
    assert QUESTIONS["description"][0] == DEFAULT_PROMPT


def test_an_answer_is_true_when_it_is_exact_and_each_counts_for_its_question() -> None:
    scenes = [sample_scene(seed, size_of(seed)) for seed in range(2)]

    def ask(images: list[Image.Image], question: str) -> str:
        """Answer the count of windows right, of the second screen in other words; nothing else."""
        if question != QUESTIONS["windows"][0]:
            return "nonsense"
        is_first = images[0].tobytes() == paint(scenes[0]).tobytes()
        return f" {len(scenes[0].windows)}\n" if is_first else f"{len(scenes[1].windows)} windows"

    got = {name: (sum(true), len(true)) for name, true in evaluate(ask, range(2)).items()}
    assert got == dict.fromkeys(QUESTIONS, (0, 2)) | {"windows": (1, 2), "change": (0, 1)}
