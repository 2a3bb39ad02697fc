"""Loads a checkpoint with mlx-vlm, lazily, so that a pass evaluates only the half that it runs.

Owns the way from files to an mlx-vlm model in a compute dtype. Imports MLX and mlx-vlm inside its
functions: that takes seconds.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import CheckpointError
from checkpoint.backend import import_mlx
from checkpoint.config import CheckpointConfig
from checkpoint.folder import CheckpointFolder


def load_model(folder: CheckpointFolder, config: CheckpointConfig) -> Any:
    """Return mlx-vlm's model of the checkpoint with no weight evaluated yet.

    Raises:
        CheckpointError: there are no weights, they are cut short, or they do not fit the config.
    """
    import_mlx()
    from mlx_vlm.utils import load_model as load_mlx_vlm_model

    require_weights(folder.path)
    try:
        with readable_folder(folder, config) as path:
            return load_mlx_vlm_model(path, lazy=True)
    except (ValueError, RuntimeError, KeyError, FileNotFoundError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The weights in {folder.path} do not load as {config.architecture} ({reason}): "
            "download the checkpoint again."
        ) from error


def require_weights(folder: Path) -> None:
    """Check that ``folder`` has weight files.

    Raises:
        CheckpointError: it has none.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has a config.json but no *.safetensors: give a folder with weights to --model."
        )


def cast(module: Any, dtype: str) -> None:
    """Cast the floating-point parameters of ``module`` to ``dtype``, in place; packed weights stay."""
    module.set_dtype(getattr(import_mlx(), dtype))


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
