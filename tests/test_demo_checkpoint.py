"""The demo checkpoint reads screens, and reads them through DeepStack and its own frame."""

import json
from statistics import mean

import pytest
from tokenizers import Tokenizer

from seeonce.demo.checkpoint_files import SPECIAL_TOKENS
from seeonce.demo.evaluate import CHECKPOINT, evaluate, live_decoder
from seeonce.demo.questions import CHANGE_QUESTION, DEFAULT_PROMPT, QUESTIONS
from seeonce.demo.screens import FIRST_HELD_OUT_SEED

NUM_OF_CONTROLS = 3


def seeds(num_screens: int) -> range:
    return range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + num_screens)


def rates(seeds: range, zero_deepstack: bool = False, swap_images: bool = False) -> dict[str, float]:
    verdicts = evaluate(live_decoder(CHECKPOINT, zero_deepstack), seeds, swap_images)
    return {question: mean(true) for question, true in verdicts.items()}


@pytest.mark.parametrize(
    "num_screens", [3, pytest.param(24, marks=pytest.mark.campaign)], ids="{} screens".format
)
def test_answers_on_unseen_screens_are_true(num_screens: int) -> None:
    got = rates(seeds(num_screens))
    assert set(got) == {*QUESTIONS, "change"}
    assert min(got.values()) >= 0.9


@pytest.mark.campaign  # test_demo_answers has it with fewer questions
def test_without_deepstack_answers_are_false() -> None:
    got = rates(seeds(NUM_OF_CONTROLS), zero_deepstack=True)
    assert got["description"] <= 0.5
    assert got["apps"] <= 0.7


@pytest.mark.campaign
def test_with_another_frames_picture_answers_are_false() -> None:
    got = rates(seeds(NUM_OF_CONTROLS), swap_images=True)
    assert got["description"] <= 0.5
    assert got["topics"] <= 0.7


@pytest.mark.parametrize(
    "text", ["", "  two  spaces\n\ttab", "héllo ✓ 日本語 🙂", DEFAULT_PROMPT, "\x00\x7f"]
)
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_are_one_token_each_and_known_to_the_configuration() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert [tokenizer.encode(token).ids for token in SPECIAL_TOKENS] == [
        [n] for n in range(len(SPECIAL_TOKENS))
    ]
    assert config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>")
    assert config["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")


def test_prompts_are_short_for_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert len(tokenizer.encode(DEFAULT_PROMPT).ids) <= 50
    assert len(tokenizer.encode(CHANGE_QUESTION[0]).ids) <= 12


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 6_000_000
