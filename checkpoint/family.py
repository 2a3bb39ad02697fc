"""What a family of checkpoints is, and what its decoder layers keep of each token and each row."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerState:
    """How many values one decoder layer keeps of a row.

    Attention keeps ``num_per_token``, keys and values. A gated delta net keeps a fixed number however long
    the row: ``num_window``, the last inputs of its convolution, and ``num_recurrent``, which are float32. The
    others are of the compute dtype.
    """

    num_per_token: int = 0
    num_window: int = 0
    num_recurrent: int = 0

    @property
    def is_recurrent(self) -> bool:
        """Whether it keeps a recurrent state, which cannot be cut back to fewer tokens."""
        return self.num_recurrent > 0


def attention(text: dict[str, Any]) -> LayerState:
    """Return what a layer of attention keeps, of a ``text_config``."""
    num_kv_heads = int(text.get("num_key_value_heads") or text["num_attention_heads"])
    return LayerState(num_per_token=2 * num_kv_heads * int(text["head_dim"]))


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints of one ``architecture``: ``model_type`` in config.json, and mlx-vlm's package for it.

    ``say_as_mlx_vlm`` changes a transformers configuration, in place, into the words of mlx-vlm 0.7.10.
    ``layers`` tells of a ``text_config`` what each decoder layer keeps. ``loading`` is a context in which
    mlx-vlm loads weights of a ``text_config``. Weights whose names end with one of ``float32_weights`` stay
    float32 where the checkpoint has them so.
    """

    architecture: str
    title: str
    say_as_mlx_vlm: Callable[[dict[str, Any]], None]
    layers: Callable[[dict[str, Any]], tuple[LayerState, ...]]
    loading: Callable[[dict[str, Any]], AbstractContextManager[None]] = lambda _: nullcontext()
    float32_weights: tuple[str, ...] = ()
