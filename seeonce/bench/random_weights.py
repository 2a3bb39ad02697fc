"""Random weights with the dimensions of published checkpoints, or small ones for a CPU."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cache.base.errors import InputError
from seeonce.bench.options import Dims
from seeonce.demo.checkpoint_files import SPECIAL_TOKENS, configuration, train_tokenizer, write_settings
from seeonce.demo.random_qwen3_5 import delta_nets

Transformer = tuple[int, int, int, int]
"""Depth, width, feed-forward width and heads."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one checkpoint. Source: the config.json of Qwen/Qwen3-VL-*-Instruct, Qwen/Qwen3.5-*.

    With ``num_delta_heads``, those of keys and of values in its gated delta nets, it is a Qwen3.5.
    """

    text: Transformer
    vision: Transformer
    deepstack: tuple[int, ...] = ()
    num_kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151_936
    tied: bool = True
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    dtype: str = "bfloat16"
    num_delta_heads: tuple[int, int] | None = None


def _qwen3_5(
    text: Transformer, vision: Transformer, num_kv_heads: int, num_value_heads: int, *, tied: bool = True
) -> Shape:
    return Shape(
        text, vision, (), num_kv_heads, head_dim=256, vocabulary=248_320, tied=tied,
        mrope_section=(11, 11, 10), num_delta_heads=(16, num_value_heads),
    )  # fmt: skip


_TOWER = (24, 1024, 4096, 16)
_LARGE_TOWER = (27, 1152, 4304, 16)
SHAPES = {
    Dims.small: Shape(
        (6, 384, 1152, 6), (6, 256, 1024, 4), (1, 2, 3), 2, 64, 768, mrope_section=(12, 10, 10),
        dtype="float32",
    ),
    Dims.qwen3_vl_2b: Shape((28, 2048, 6144, 16), _TOWER, (5, 11, 17)),
    Dims.qwen3_vl_4b: Shape((36, 2560, 9728, 32), _TOWER, (5, 11, 17)),
    Dims.qwen3_vl_8b: Shape((36, 4096, 12288, 32), _LARGE_TOWER, (8, 16, 24), tied=False),
    Dims.qwen3_5_0_8b: _qwen3_5((24, 1024, 3584, 8), (12, 768, 3072, 12), 2, 16),
    Dims.qwen3_5_2b: _qwen3_5((24, 2048, 6144, 8), _TOWER, 2, 16),
    Dims.qwen3_5_4b: _qwen3_5((32, 2560, 9216, 16), _TOWER, 4, 32),
    Dims.qwen3_5_9b: _qwen3_5((32, 4096, 12288, 16), _LARGE_TOWER, 4, 32, tied=False),
}  # fmt: skip
_NUM_POSITIONS = 2304

_TEXT_SPREAD = 2.0  # of a weight, times the root of its fan-in: large enough that a picture sways the answer
_VISION_SPREAD = 2.8
_BYTES = {"float32": 4, "bfloat16": 2}
MAX_PIXELS = 16_777_216  # official checkpoints allow as much


def write_checkpoint(folder: Path, dims: Dims) -> Path:
    """Write random weights with the dimensions of ``dims`` into ``folder``, unless they are there.

    Raises:
        InputError: the disk has no room for them.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    import mlx.core as mx

    shape = SHAPES[dims]
    tokenizer = train_tokenizer()
    write_settings(folder, tokenizer)
    ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    config = _config(shape, configuration(ids, shape.vocabulary))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _allow_large_pictures(folder / "preprocessor_config.json")
    parameters = _parameters(config)
    _require_room(folder, sum(value.size for value in parameters.values()) * _BYTES[shape.dtype])
    weights = dict(_random_weights(shape, parameters, _plain_words(tokenizer)))
    fresh = folder / ".model.new.safetensors"
    mx.save_safetensors(str(fresh), weights, {"format": "mlx"})
    fresh.replace(folder / "model.safetensors")
    return folder


def _config(shape: Shape, config: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "mrope_section": list(shape.mrope_section),
        "rope_type": "default",
        "mrope_interleaved": True,
    }
    text = config["text_config"] | {
        "num_hidden_layers": shape.text[0],
        "hidden_size": shape.text[1],
        "intermediate_size": shape.text[2],
        "num_attention_heads": shape.text[3],
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 262_144,
        "rope_theta": 5e6,
        "rope_scaling": rope,
        "rope_parameters": {**rope, "rope_theta": 5e6},
        "tie_word_embeddings": shape.tied,
        "dtype": shape.dtype,
    }
    architecture = config["model_type"]
    if shape.num_delta_heads is not None:
        architecture = "qwen3_5"
        text |= delta_nets(*shape.num_delta_heads) | {
            "model_type": "qwen3_5_text",
            "rope_parameters": {**rope, "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        }
    vision = config["vision_config"] | {
        "model_type": architecture,
        "depth": shape.vision[0],
        "hidden_size": shape.vision[1],
        "intermediate_size": shape.vision[2],
        "num_heads": shape.vision[3],
        "out_hidden_size": shape.text[1],
        "num_position_embeddings": _NUM_POSITIONS,
        "deepstack_visual_indexes": list(shape.deepstack),
        "dtype": shape.dtype,
    }
    return config | {
        "model_type": architecture,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": shape.tied,
        "dtype": shape.dtype,
    }


def _allow_large_pictures(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    limits = {"max_pixels": MAX_PIXELS, "size": settings["size"] | {"longest_edge": MAX_PIXELS}}
    path.write_text(json.dumps(settings | limits, indent=2) + "\n", encoding="utf-8")


def _plain_words(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of words of plain letters: parts of characters would read differently when streamed."""
    ids = range(tokenizer.get_vocab_size())
    words = {number: tokenizer.decode([number], skip_special_tokens=True) for number in ids}
    return [number for number, word in words.items() if word.isascii() and word.strip().isalnum()]


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return mlx-vlm's parameters by name, none of them evaluated."""
    from mlx.utils import tree_flatten

    package = import_module(f"mlx_vlm.models.{config['model_type']}")
    model = package.Model(package.ModelConfig.from_dict(json.loads(json.dumps(config))))
    return dict(tree_flatten(model.parameters()))


def _require_room(folder: Path, num_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < num_bytes:
        raise InputError(
            f"Weights of these dimensions take {num_bytes / 1e9:.1f} GB, {folder.parent} has "
            f"{free_bytes / 1e9:.1f} GB free: set TMPDIR to a folder with more room, or take smaller --dims."
        )


def _random_weights(
    shape: Shape, parameters: dict[str, Any], plain_words: list[int]
) -> Iterator[tuple[str, Any]]:
    """Yield each parameter with its name, drawn one by one. Only ``plain_words`` are ever the likeliest."""
    import mlx.core as mx

    dtype = getattr(mx, shape.dtype)
    for number, (name, value) in enumerate(parameters.items()):
        if name.endswith(
            ".A_log"
        ):  # some heads of a delta net forget within a few tokens, some hardly at all
            yield name, mx.linspace(-5, 0, value.size)
            continue
        if value.ndim < 2:
            yield name, value.astype(dtype)
            continue
        spread = _VISION_SPREAD if "vision" in name else _TEXT_SPREAD
        fan_in = value.size // value.shape[0]
        drawn = mx.random.normal(value.shape, scale=spread / fan_in**0.5, key=mx.random.key(number))
        if "embed_tokens" in name or "lm_head" in name:
            drawn = drawn * mx.zeros((value.shape[0], 1)).at[mx.array(plain_words)].add(1.0)
        drawn = drawn.astype(dtype)
        mx.eval(drawn)
        yield name, drawn
