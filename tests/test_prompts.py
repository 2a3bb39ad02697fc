"""Prompts become tokens as mlx-vlm makes them, and a user's text never becomes an image."""

import json
from pathlib import Path

import pytest
from live_mlx_vlm import PROMPTS, Encoded, Live, draw_noise, encode_folder
from mlx_vlm.utils import prepare_inputs
from tiny_checkpoint import Tiny, write_checkpoint

from cache.base.errors import InputError
from infer.limits import BatchLimits
from infer.request import Image, Text
from infer.sampling import Sampling
from infer.tokenizer import ChatTokenizer
from seeonce.runs.prompts import DEFAULT_PROMPT, Prompt, collect_prompts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Tiny(max_pixels=65536))


@pytest.fixture(scope="module")
def encoded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    images = draw_noise(tmp_path_factory.mktemp("images"), 3)
    return encode_folder(checkpoint, images, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def tokenizer(encoded: Encoded) -> ChatTokenizer:
    return ChatTokenizer(encoded.checkpoint)


@pytest.mark.parametrize(
    "text",
    [*PROMPTS, DEFAULT_PROMPT, "\n leading and trailing \n\n", "日本語 🙂 {{x}} {% y %} \\d", "<b>&amp;"],
)
def test_tokens_are_those_of_mlx_vlm(
    checkpoint: Path, encoded: Encoded, tokenizer: ChatTokenizer, text: str
) -> None:
    live = Live(checkpoint)
    frame = encoded.manifest.frames[0]
    inputs = prepare_inputs(
        live.processor,
        images=[frame.source],
        prompts=live.formatted(text),
        add_special_tokens=False,
        image_token_index=live.model.config.image_token_index,
    )
    assert list(tokenizer.encode(Prompt(text).segments(frame)).ids) == inputs["input_ids"].tolist()[0]


def test_a_system_text_stands_where_the_chat_template_puts_it(
    checkpoint: Path, encoded: Encoded, tokenizer: ChatTokenizer
) -> None:
    frame, live = encoded.manifest.frames[0], Live(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = live.processor.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    prompt = tokenizer.encode(Prompt("What?").segments(frame), "Be brief.")
    pad = encoded.checkpoint.tokens.image
    ids = [token for token in prompt.ids if token != pad]
    assert ids == [i for i in live.processor.tokenizer.encode(text, add_special_tokens=False) if i != pad]
    tricky = tokenizer.encode(Prompt("What?").segments(frame), "<|image_pad|><|im_end|>")
    assert (tricky.images[0].num_tokens, tricky.ids.count(pad)) == (frame.num_tokens, frame.num_tokens)


@pytest.mark.parametrize(
    "special", ["<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>"]
)
def test_special_tokens_in_the_users_text_stay_text(
    encoded: Encoded, tokenizer: ChatTokenizer, special: str
) -> None:
    frame = encoded.manifest.frames[0]
    plain = tokenizer.encode(Prompt("before after").segments(frame))
    tricky = tokenizer.encode(Prompt(f"before {special} after").segments(frame))
    vision_start = json.loads(encoded.checkpoint.mlx_vlm_json)["vision_start_token_id"]
    specials = {encoded.checkpoint.tokens.image, *tokenizer.stop_ids, vision_start}
    assert tricky.images == plain.images
    assert [i for i in tricky.ids if i in specials] == [i for i in plain.ids if i in specials]
    assert f"before {special} after" in tokenizer.decode(tricky.ids)


def test_a_prompt_that_spells_image_tokens_is_answered(encoded: Encoded) -> None:
    requests = encoded.requests(("What does <|image_pad|><|image_pad|> mean?",), Sampling(max_tokens=4))
    answers = encoded.answers(requests, BatchLimits())
    assert [answer.error for answer in answers.values()] == [None] * 3


def test_several_frames_may_be_shown_between_words(encoded: Encoded, tokenizer: ChatTokenizer) -> None:
    first, second, _ = encoded.manifest.frames
    segments = (Text("Frame 1: "), Image(first), Text("\nFrame 2: "), Image(second), Text("\nWhat changed?"))
    prompt = tokenizer.encode(segments)
    assert [span.grid_thw for span in prompt.images] == [first.grid_thw, second.grid_thw]
    assert prompt.images[1].start > prompt.images[0].start + prompt.images[0].num_tokens
    assert prompt.ids.count(encoded.checkpoint.tokens.image) == first.num_tokens + second.num_tokens


def test_a_prompt_longer_than_the_context_is_an_error_of_its_own(encoded: Encoded) -> None:
    requests = encoded.requests(("x" * 5000, "short"), Sampling(max_tokens=2))
    answers = encoded.answers(requests, BatchLimits())
    assert [answers[request.id].error is None for request in requests] == [False, True] * 3
    assert "context" in str(answers[0].error)


def test_prompts_come_from_options_and_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "question.txt").write_text("From a file?\n")
    prompts = collect_prompts(["First?", "First?"], [tmp_path / "question.txt"])
    assert [prompt.text for prompt in prompts] == ["First?", "From a file?"]
    assert collect_prompts([], [])[0].text == DEFAULT_PROMPT


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_prompt_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(InputError, match="empty"):
        collect_prompts([], [tmp_path / "empty.txt"])
    with pytest.raises(InputError, match="empty"):
        collect_prompts([content], [])
