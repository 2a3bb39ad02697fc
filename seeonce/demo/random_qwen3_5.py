"""A small random Qwen3.5 with the tokenizer and the tower of the demo: the canary tries its decoder."""

import json
import shutil
from pathlib import Path
from typing import Any

_LEFT = ("config.json", "model.safetensors", "README.md")
_VISION_SPREAD, _TEXT_SPREAD = 0.3, 0.2  # large enough that a picture and every state sway the answer


def delta_nets(num_key_heads: int, num_value_heads: int, head_dim: int = 128) -> dict[str, int]:
    """Return what a ``text_config`` says of gated delta nets, three to each layer of attention."""
    return {
        "full_attention_interval": 4,
        "linear_num_key_heads": num_key_heads,
        "linear_num_value_heads": num_value_heads,
        "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim,
        "linear_conv_kernel_dim": 4,
    }


def write_checkpoint(folder: Path, demo: Path) -> Path:
    """Write it into ``folder``, beside the settings of the ``demo`` checkpoint. Imports mlx-vlm."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_vlm.models import qwen3_5

    folder.mkdir(parents=True, exist_ok=True)
    for file in demo.iterdir():
        if file.name not in _LEFT:
            shutil.copyfile(file, folder / file.name)
    config = _config(json.loads((demo / "config.json").read_text(encoding="utf-8")))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    flat: Any = tree_flatten(qwen3_5.Model(qwen3_5.ModelConfig.from_dict(config)).parameters())
    weights = {name: _drawn(mx, number, name, value) for number, (name, value) in enumerate(flat)}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _config(config: dict[str, Any]) -> dict[str, Any]:
    text = config["text_config"]
    rope = text["rope_parameters"] | {"partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
    return config | {
        "model_type": "qwen3_5",
        "text_config": text | delta_nets(2, 4, 32) | {"model_type": "qwen3_5_text", "rope_parameters": rope},
        "vision_config": config["vision_config"] | {"model_type": "qwen3_5", "deepstack_visual_indexes": []},
    }


def _drawn(mx: Any, number: int, name: str, value: Any) -> Any:
    if name.endswith(".A_log"):  # some heads of a delta net forget within a few tokens, some hardly at all
        return mx.linspace(-5, 0, value.size)
    if value.ndim < 2:
        return mx.zeros_like(value) if name.endswith(".bias") else value
    spread = _VISION_SPREAD if "vision" in name else _TEXT_SPREAD
    return mx.random.normal(value.shape, scale=spread, key=mx.random.key(number)).astype(mx.bfloat16)
