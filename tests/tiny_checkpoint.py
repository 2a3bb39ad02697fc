"""Writes small random checkpoints of each family, so that no test needs a download, a network or a GPU.

Weights are drawn large enough that DeepStack and every image token sway the logits: a path that
drops or swaps features gives other tokens, not the same ones by luck.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.models import qwen3_5, qwen3_5_moe, qwen3_vl, qwen3_vl_moe
from mlx_vlm.models.qwen3_5.qwen3_5 import NORM_WEIGHT_SUFFIXES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

nn: Any = mlx.nn  # its stubs lack quantize

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK = ("<think>", "</think>")
QWEN3_5_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
)
PACKAGES = {
    "qwen3_vl": qwen3_vl, "qwen3_vl_moe": qwen3_vl_moe, "qwen3_5": qwen3_5, "qwen3_5_moe": qwen3_5_moe
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tiny:
    """What to write. The defaults give about 0.8 M float32 weights in Hugging Face's layout."""

    family: Literal["qwen3_vl", "qwen3_5"] = "qwen3_vl"
    moe: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    layout: Literal["huggingface", "mlx"] = "huggingface"
    text_bits: int | None = None
    vision_bits: int | None = None
    vision_model_type: str | None = None
    max_pixels: int = 1 << 20
    text_layers: int = 4
    hidden: int = 64
    vision_depth: int = 4
    vision_hidden: int = 64
    tied: bool = False
    seed: int = 0

    @property
    def architecture(self) -> str:
        return self.family + "_moe" * self.moe


def write_checkpoint(path: Path, tiny: Tiny | None = None) -> Path:
    """Write a random checkpoint into the folder ``path`` and return it."""
    tiny = tiny or Tiny()
    path.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(path, QWEN3_5_TEMPLATE if tiny.family == "qwen3_5" else CHAT_TEMPLATE)
    config = _config(tiny, ids)
    model = _random_model(tiny, config)
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    if tiny.layout == "huggingface" and tiny.text_bits is None and tiny.vision_bits is None:
        weights = dict(_to_huggingface(name, value, tiny) for name, value in weights.items())
        weights = _fuse_experts(weights, tiny) if tiny.moe else weights
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps(_preprocessor(tiny)))
    return path


def _write_tokenizer(path: Path, template: str) -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIALS))
    bpe.add_tokens(list(THINK) if template == QWEN3_5_TEMPLATE else [])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return {special: tokenizer.convert_tokens_to_ids(special) for special in SPECIALS}


def _config(tiny: Tiny, ids: dict[str, int]) -> dict[str, Any]:
    kind = tiny.architecture
    text: dict[str, Any] = {
        "model_type": f"{kind}_text",
        "vocab_size": 256 + len(SPECIALS) + len(THINK) * (tiny.family == "qwen3_5"),
        "hidden_size": tiny.hidden,
        "intermediate_size": 160,
        "num_hidden_layers": tiny.text_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tiny.tied,
    }
    if tiny.moe:
        text |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if tiny.family == "qwen3_5":
        text |= _hybrid(tiny)
    config: dict[str, Any] = {
        "model_type": kind,
        "text_config": text,
        "vision_config": {
            "model_type": tiny.vision_model_type or kind,
            "depth": tiny.vision_depth,
            "hidden_size": tiny.vision_hidden,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": tiny.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1, 2] if tiny.family == "qwen3_vl" else [],
        },
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": tiny.tied,
    }
    if tiny.text_bits or tiny.vision_bits:
        bits = tiny.text_bits or tiny.vision_bits
        config["quantization"] = {"group_size": 64, "bits": bits, "mode": "affine"}
    return config


def _hybrid(tiny: Tiny) -> dict[str, Any]:
    """Return what Qwen3.5 has beside it: three gated delta nets to one layer of attention."""
    return {
        "full_attention_interval": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.5,
        },
        **({"shared_expert_intermediate_size": 64} if tiny.moe else {}),
    }


def _random_model(tiny: Tiny, config: dict[str, Any]) -> Any:
    package: Any = PACKAGES[tiny.architecture]
    parsed = package.ModelConfig.from_dict(
        json.loads(
            json.dumps(
                config | {"vision_config": {**config["vision_config"], "model_type": config["model_type"]}}
            )
        )
    )
    mx.random.seed(tiny.seed)  # before the model: its biases are drawn too
    model: Any = package.Model(parsed)

    def draw(name: str, value: mx.array) -> mx.array:
        if name.endswith("A_log"):  # some heads of a delta net forget within a few tokens, some hardly at all
            return mx.linspace(-5, 0, value.size)
        if value.ndim < 2:
            return value
        return mx.random.normal(value.shape) * (0.35 if "vision_tower" in name else 0.25)

    model.update(tree_map_with_path(draw, model.parameters()))
    if tiny.text_bits:
        nn.quantize(model.language_model, 64, tiny.text_bits, class_predicate=_quantizable)
    if tiny.vision_bits:
        nn.quantize(model.vision_tower, 64, tiny.vision_bits, class_predicate=_quantizable)
    model.set_dtype(mx.bfloat16 if tiny.dtype == "bfloat16" else mx.float32)
    return model


def _quantizable(name: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0


def _to_huggingface(name: str, value: mx.array, tiny: Tiny) -> tuple[str, mx.array]:
    if name.endswith("patch_embed.proj.weight"):
        value = value.transpose(0, 4, 1, 2, 3)
    if tiny.family == "qwen3_5":
        if name.endswith("conv1d.weight"):
            value = value.moveaxis(2, 1)
        if name.endswith(NORM_WEIGHT_SUFFIXES) and value.ndim == 1:
            value = value - 1
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "model.visual.", 1), mx.contiguous(value)
    name = name.replace("language_model.model.", "model.language_model.", 1)
    return name.replace("language_model.lm_head", "lm_head"), mx.contiguous(value)


def _fuse_experts(weights: dict[str, mx.array], tiny: Tiny) -> dict[str, mx.array]:
    """Name experts as transformers does: fused gate and up; Qwen3-VL has input before output dimensions."""
    fused = {n: v for n, v in weights.items() if ".switch_mlp." not in n}
    for name in [n for n in weights if n.endswith("switch_mlp.gate_proj.weight")]:
        stem = name.removesuffix("switch_mlp.gate_proj.weight")
        gate, up, down = (weights[f"{stem}switch_mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        for kind, value in (("gate_up_proj", mx.concatenate([gate, up], axis=1)), ("down_proj", down)):
            turned = value.transpose(0, 2, 1) if tiny.family == "qwen3_vl" else value
            fused[f"{stem}experts.{kind}"] = mx.contiguous(turned)
    return fused


def _preprocessor(tiny: Tiny) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 1024,
        "max_pixels": tiny.max_pixels,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
