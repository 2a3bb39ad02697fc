"""Loads a checkpoint with mlx-vlm, lazily, so that a pass evaluates only the half that it runs.

Imports MLX and mlx-vlm inside its functions: that takes seconds.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.base.errors import CheckpointError
from checkpoint.backend import import_mlx
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder, require_weights


def load_model(folder: CheckpointFolder, config: CheckpointConfig) -> Any:
    """Return mlx-vlm's model of the checkpoint with no weight evaluated yet.

    Raises:
        CheckpointError: there are no weights, they are cut short, or they do not fit the config.
    """
    import_mlx()
    from mlx_vlm.utils import load_model as load_mlx_vlm_model

    require_weights(folder.path)
    try:
        with readable_folder(folder, config) as path, _experts_of_any_transformers(config):
            return load_mlx_vlm_model(path, lazy=True)
    except (ValueError, RuntimeError, KeyError, FileNotFoundError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The weights in {folder.path} do not load as {config.architecture} ({reason}): "
            "download the checkpoint again."
        ) from error


def cast(module: Any, dtype: str) -> None:
    """Cast the floating-point parameters of ``module`` to ``dtype``, in place; packed weights stay.

    Raises:
        CheckpointError: it has experts that MLX cannot compute in ``dtype`` here.
    """
    mx = import_mlx()
    if dtype != "float32" and mx.default_device() == mx.Device(mx.cpu) and _has_unpacked_experts(module):
        raise CheckpointError(
            f"MLX computes a mixture of experts in float32 alone on a CPU, not in {dtype}: encode and "
            "describe with SEEONCE_DTYPE=float32, or take quantised weights."
        )
    module.set_dtype(getattr(mx, dtype))


def _has_unpacked_experts(module: Any) -> bool:
    from mlx_vlm.models.switch_layers import SwitchLinear

    return any(isinstance(part, SwitchLinear) for part in module.modules())


@contextmanager
def readable_folder(folder: CheckpointFolder, config: CheckpointConfig) -> Iterator[Path]:
    """Give a folder that mlx-vlm reads: the checkpoint's own, or links to its files beside a config
    in mlx-vlm's words.
    """
    if not config.rewritten:
        yield folder.path
        return
    with tempfile.TemporaryDirectory(prefix="seeonce-") as name:
        shadow = Path(name)
        for file in folder.path.iterdir():
            if file.is_file() and file.name != "config.json":
                (shadow / file.name).symlink_to(file.resolve())
        (shadow / "config.json").write_text(config.mlx_vlm_json, encoding="utf-8")
        yield shadow


@contextmanager
def _experts_of_any_transformers(config: CheckpointConfig) -> Iterator[None]:
    """Let mlx-vlm's ``sanitize`` see fused experts as it expects them, whoever wrote them.

    It takes ``gate_up_proj`` as the published checkpoints have it, (experts, hidden, 2 * intermediate);
    transformers 5 writes (experts, 2 * intermediate, hidden), and ``down_proj`` transposed likewise.
    """
    if config.num_experts == 0:
        yield
        return
    from mlx_vlm.models.qwen3_vl_moe import Model

    original = Model.sanitize

    def sanitize(model: Any, weights: dict[str, Any]) -> Any:
        return original(model, _experts_turned(weights, config))

    Model.sanitize = sanitize
    try:
        yield
    finally:
        Model.sanitize = original


def _experts_turned(weights: dict[str, Any], config: CheckpointConfig) -> dict[str, Any]:
    hidden, intermediate = config.text.hidden_size, config.expert_size
    turned = {  # a square one tells nothing, but then the other of the two is not square
        "gate_up_proj": (config.num_experts, 2 * intermediate, hidden),
        "down_proj": (config.num_experts, hidden, intermediate),
    }

    def is_turned(stem: str) -> bool:
        return all(
            f"{stem}.{kind}" in weights and tuple(weights[f"{stem}.{kind}"].shape) == shape
            for kind, shape in turned.items()
        )

    stems = {name.rpartition(".")[0] for name in weights if name.endswith(".experts.down_proj")}
    to_turn = {f"{stem}.{kind}" for stem in stems if is_turned(stem) for kind in turned}
    return {name: value.transpose(0, 2, 1) if name in to_turn else value for name, value in weights.items()}
