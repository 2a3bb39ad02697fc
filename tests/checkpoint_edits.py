"""Changes a tiny checkpoint: other fields, or the words that another library writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

Json = dict[str, Any]


def copy_of(path: Path, to: Path) -> Path:
    """Copy a checkpoint: what a test may change."""
    return Path(shutil.copytree(path, to))


def edit(path: Path, name: str, change: Callable[[Json], object]) -> Path:
    """Change a JSON file of a checkpoint in place."""
    document = json.loads((path / name).read_text())
    change(document)
    (path / name).write_text(json.dumps(document))
    return path


def as_transformers_5(path: Path) -> Path:
    """Say a checkpoint as transformers 5.23 saves one, seen by saving one with it."""
    config = json.loads((path / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    vision["model_type"] = f"{config['model_type']}_vision"
    vision["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    text["tie_word_embeddings"] = not config["tie_word_embeddings"]
    if "full_attention_interval" in text:  # then every layer's kind is named, and what is the default not
        interval, number = text.pop("full_attention_interval"), text["num_hidden_layers"]
        kinds = (["linear_attention"] * (interval - 1) + ["full_attention"]) * number
        text["layer_types"] = kinds[:number]
        del vision["deepstack_visual_indexes"]
        (path / "config.json").write_text(json.dumps(config))
        return path
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    if "num_experts" in text:
        text["num_local_experts"] = text.pop("num_experts")
        text["router_aux_loss_coef"] = 0.001
    (path / "config.json").write_text(json.dumps(config))
    weights: Any = mx.load(str(path / "model.safetensors"))
    turned = {n: mx.contiguous(w.transpose(0, 2, 1)) if ".experts." in n else w for n, w in weights.items()}
    mx.save_safetensors(str(path / "model.safetensors"), turned, {"format": "pt"})
    return path
