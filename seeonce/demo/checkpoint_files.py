"""The files of the demo checkpoint beside its weights: configuration, tokenizer, chat template.

Hugging Face layout, with the names that mlx-vlm reads. Needs the `tokenizers` package for
training the tokenizer; no torch.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from seeonce.demo.questions import CHANGE_QUESTION, QUESTIONS, answers, change_answer
from seeonce.demo.scene import sample_scene

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY_SIZE = 768
PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE = 16, 2, 2

# 1280x800 becomes 320x192, 60 merged tokens; 1024x768 becomes 288x192, 54 merged tokens.
MIN_PIXELS, MAX_PIXELS = 32 * 32, 256 * 256

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You describe screenshots.",
    "Answer briefly and truthfully.",
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' or part.type == 'image_url' or 'image' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def train_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on prompts and answers; it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer)
    return tokenizer


def _tokenizer_corpus() -> Iterator[str]:
    rng = random.Random(0)
    prompts = [text for texts in (*QUESTIONS.values(), CHANGE_QUESTION) for text in texts]
    frames = "Frame 1 (0 s): \nFrame 2 (10 s): \n"
    for seed in range(1000):
        first, second = sample_scene(seed, (1280, 800)), sample_scene(seed + 1, (1280, 800))
        yield from answers(first).values()
        yield change_answer(first, second)
        yield from (*prompts, frames, *SYSTEM_PROMPTS, "user\n", "assistant\n", "system\n")
        yield f"Frame {rng.randint(1, 9)} ({rng.randint(0, 900)} s): "


def configuration(token_ids: dict[str, int], vocabulary_size: int) -> dict[str, Any]:
    """Return config.json: Qwen3-VL's architecture with 2.2 million weights.

    `token_ids` maps the special tokens to their ids.
    """
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": vocabulary_size,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": rope,
            "rope_parameters": {**rope, "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        },
        "vision_config": {
            # transformers writes qwen3_vl_vision here, which mlx-vlm 0.7.10 refuses
            "model_type": "qwen3_vl",
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": 128,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "num_position_embeddings": 400,
            "deepstack_visual_indexes": [0, 1, 2],
            "dtype": "bfloat16",
        },
    }


def write_settings(folder: Path, tokenizer: Tokenizer) -> None:
    """Write everything but the weights and the model card into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {
        token: number for number, token in enumerate(SPECIAL_TOKENS)
    }  # the trainer gives them the first ids
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write(folder / "config.json", configuration(ids, tokenizer.get_vocab_size()))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
            "patch_size": PATCH_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "merge_size": MERGE_SIZE,
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
        },
    )
    _write(
        folder / "generation_config.json",
        {"eos_token_id": [ids["<|im_end|>"]], "pad_token_id": ids["<|endoftext|>"], "do_sample": False},
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
