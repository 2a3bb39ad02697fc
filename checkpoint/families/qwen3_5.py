"""Qwen3.5, dense and MoE: Qwen3-VL's tower without DeepStack; a decoder of gated delta nets and attention.

Qwen3.6 and Qwen3.8 are of the same architecture, under the same names.
"""

from typing import Any

from cache.base.errors import CheckpointError
from checkpoint.family import Family, LayerState, attention


def _say_as_mlx_vlm(config: dict[str, Any]) -> None:
    """Say what transformers 5 leaves out: the interval, where it names every layer's type, and defaults.

    Raises:
        CheckpointError: a layer is of another type, or those of attention do not come at one interval, as
            mlx-vlm has them.
    """
    text = config["text_config"]
    if "layer_types" in text:
        if unknown := set(text["layer_types"]) - {"full_attention", "linear_attention"}:
            raise _not_supported(f"layers of type {', '.join(sorted(map(str, unknown)))}")
        kinds = [kind == "full_attention" for kind in text["layer_types"]]
        interval = text.setdefault("full_attention_interval", [*kinds, True].index(True) + 1)
        if kinds != [_is_attention(index, interval) for index in range(text["num_hidden_layers"])]:
            raise _not_supported(f"layer_types without attention at an interval of {interval}")
    rope = text["rope_parameters"] = dict(text.get("rope_parameters") or {})
    rope.setdefault("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))
    rope.setdefault("mrope_section", [11, 11, 10])
    if "type" not in rope:
        rope.setdefault("rope_type", "default")
    config["vision_config"].setdefault("deepstack_visual_indexes", [])
    config.setdefault("image_token_id", 248056)
    config.setdefault("vision_start_token_id", 248053)
    if config.get("eos_token_id") is None and text.get("eos_token_id") is not None:
        config["eos_token_id"] = text["eos_token_id"]


def _not_supported(what: str) -> CheckpointError:
    return CheckpointError(f"A Qwen3.5 with {what} is not supported: give another --model.")


def _layers(text: dict[str, Any]) -> tuple[LayerState, ...]:
    interval = int(text.get("full_attention_interval", 4))
    num_layers = int(text["num_hidden_layers"])
    if not 0 < interval <= num_layers:
        raise _not_supported(f"no attention among {num_layers} layers, at an interval of {interval}")
    one, other = attention(text), _delta_net(text)
    return tuple(one if _is_attention(index, interval) else other for index in range(num_layers))


def _is_attention(index: int, interval: int) -> bool:
    return (index + 1) % interval == 0


def _delta_net(text: dict[str, Any]) -> LayerState:
    key_size, value_size = int(text["linear_key_head_dim"]), int(text["linear_value_head_dim"])
    num_key_heads, num_value_heads = int(text["linear_num_key_heads"]), int(text["linear_num_value_heads"])
    num_channels = 2 * num_key_heads * key_size + num_value_heads * value_size
    return LayerState(
        num_window=(int(text["linear_conv_kernel_dim"]) - 1) * num_channels,
        num_recurrent=num_value_heads * value_size * key_size,
    )


_FLOAT32 = (".linear_attn.A_log", ".linear_attn.norm.weight")

FAMILIES = tuple(
    Family(
        architecture,
        title,
        _say_as_mlx_vlm,
        _layers,
        float32_weights=_FLOAT32,
    )
    for architecture, title in (("qwen3_5", "Qwen3.5"), ("qwen3_5_moe", "Qwen3.5-MoE"))
)
