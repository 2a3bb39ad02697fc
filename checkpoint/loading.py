"""Loads a checkpoint with mlx-vlm, lazily, so that a pass evaluates only the half that it runs.

Imports MLX and mlx-vlm inside its functions: that takes seconds.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.base.errors import CheckpointError
from checkpoint.backend import import_mlx
from checkpoint.config import Checkpoint
from checkpoint.families import FAMILIES
from checkpoint.folder import require_weights

_FLOAT32 = tuple(name for family in FAMILIES.values() for name in family.float32_weights)


def load_model(checkpoint: Checkpoint) -> Any:
    """Return mlx-vlm's model of the checkpoint with no weight evaluated yet.

    Raises:
        CheckpointError: there are no weights, they are cut short, or they do not fit the config.
    """
    import_mlx()
    from mlx_vlm.utils import load_model as load_mlx_vlm_model

    require_weights(checkpoint.path)
    try:
        text = json.loads(checkpoint.mlx_vlm_json)["text_config"]
        with readable_folder(checkpoint) as path, checkpoint.family.loading(text):
            return load_mlx_vlm_model(path, lazy=True)
    except (ValueError, RuntimeError, KeyError, FileNotFoundError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The weights in {checkpoint.path} do not load as {checkpoint.architecture} ({reason}): "
            "download the checkpoint again."
        ) from error


def cast(module: Any, dtype: str) -> None:
    """Cast the floating-point parameters of ``module`` to ``dtype``, in place; packed weights stay.

    So do those few that a checkpoint has in float32 beside all others in half of it, as mlx-vlm reads them.

    Raises:
        CheckpointError: it has experts that MLX cannot compute in ``dtype`` here.
    """
    mx = import_mlx()
    if dtype != "float32" and mx.default_device() == mx.Device(mx.cpu) and _has_unpacked_experts(module):
        raise CheckpointError(
            f"MLX computes a mixture of experts in float32 alone on a CPU, not in {dtype}: encode and "
            "describe with SEEONCE_DTYPE=float32, or take quantised weights."
        )
    from mlx.utils import tree_map_with_path

    wanted = getattr(mx, dtype)

    def one(name: str, value: Any) -> Any:
        stays = value.dtype == mx.float32 and f".{name}".endswith(_FLOAT32)
        return value.astype(wanted) if mx.issubdtype(value.dtype, mx.floating) and not stays else value

    module.update(tree_map_with_path(one, module.parameters()))


def _has_unpacked_experts(module: Any) -> bool:
    from mlx_vlm.models.switch_layers import SwitchLinear

    return any(isinstance(part, SwitchLinear) for part in module.modules())


@contextmanager
def readable_folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """Give a folder that mlx-vlm reads: the checkpoint's own, or links to its files beside a config
    in mlx-vlm's words.
    """
    if not checkpoint.rewritten:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="seeonce-") as name:
        shadow = Path(name)
        for file in checkpoint.path.iterdir():
            if file.is_file() and file.name != "config.json":
                (shadow / file.name).symlink_to(file.resolve())
        (shadow / "config.json").write_text(checkpoint.mlx_vlm_json, encoding="utf-8")
        yield shadow
