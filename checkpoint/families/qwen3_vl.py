"""Qwen3-VL, dense and MoE: a tower with DeepStack, and a decoder of attention alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checkpoint.family import Family, LayerState, attention


def _say_as_mlx_vlm(config: dict[str, Any]) -> None:
    """Say what transformers 5 writes: ``rope_parameters`` instead of ``rope_theta`` and ``rope_scaling``."""
    text = config["text_config"]
    rope = text.get("rope_parameters")
    if isinstance(rope, dict):
        text.setdefault("rope_theta", rope.get("rope_theta"))
        if not text.get("rope_scaling"):
            text["rope_scaling"] = {name: rope[name] for name in rope if name != "rope_theta"}


def _say_moe_as_mlx_vlm(config: dict[str, Any]) -> None:
    _say_as_mlx_vlm(config)
    text = config["text_config"]
    if "num_local_experts" in text:
        text.setdefault("num_experts", text["num_local_experts"])
    text.setdefault("mlp_only_layers", [])
    text.setdefault("decoder_sparse_step", 1)
    int(text["num_experts"]), int(text["moe_intermediate_size"])  # both must be there


def _layers(text: dict[str, Any]) -> tuple[LayerState, ...]:
    return (attention(text),) * int(text["num_hidden_layers"])


@contextmanager
def _experts_of_any_transformers(text: dict[str, Any]) -> Iterator[None]:
    """Let mlx-vlm's ``sanitize`` see fused experts as it expects them, whoever wrote them.

    It takes ``gate_up_proj`` as the published checkpoints have it, (experts, hidden, 2 * intermediate);
    transformers 5 writes (experts, 2 * intermediate, hidden), and ``down_proj`` transposed likewise.
    """
    from mlx_vlm.models.qwen3_vl_moe import Model

    original = Model.sanitize

    def sanitize(model: Any, weights: dict[str, Any]) -> Any:
        return original(model, _experts_turned(weights, text))

    Model.sanitize = sanitize
    try:
        yield
    finally:
        Model.sanitize = original


def _experts_turned(weights: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    num_experts, hidden = int(text["num_experts"]), int(text["hidden_size"])
    intermediate = int(text["moe_intermediate_size"])
    turned = {  # a square one tells nothing, but then the other of the two is not square
        "gate_up_proj": (num_experts, 2 * intermediate, hidden),
        "down_proj": (num_experts, hidden, intermediate),
    }

    def is_turned(stem: str) -> bool:
        return all(
            f"{stem}.{kind}" in weights and tuple(weights[f"{stem}.{kind}"].shape) == shape
            for kind, shape in turned.items()
        )

    stems = {name.rpartition(".")[0] for name in weights if name.endswith(".experts.down_proj")}
    to_turn = {f"{stem}.{kind}" for stem in stems if is_turned(stem) for kind in turned}
    return {name: value.transpose(0, 2, 1) if name in to_turn else value for name, value in weights.items()}


FAMILIES = (
    Family("qwen3_vl", "Qwen3-VL", _say_as_mlx_vlm, _layers),
    Family("qwen3_vl_moe", "Qwen3-VL-MoE", _say_moe_as_mlx_vlm, _layers, _experts_of_any_transformers),
)
