"""Finds a checkpoint: a local folder, or a hub id that is looked up offline before anything is fetched."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from cache.base.errors import CheckpointError
from cache.base.text import user_path
from checkpoint.backend import memory_bytes
from checkpoint.config import Checkpoint, read_checkpoint

DEFAULT_MODEL = "mlx-community/Qwen3-VL-4B-Instruct-4bit"
SMALL_MODEL = "mlx-community/Qwen3-VL-2B-Instruct-4bit"
_SHORT_BYTES = 12e9  # of memory: 4 GB of weights and 3 GB for a frame of 1920x1080 leave too little of 8 GB
DEMO = "demo"
_HUB_ID = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?$")
_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt")


def default_model(recording_id: str) -> str:
    """Return SEEONCE_MODEL, else the bundled checkpoint for the demo recording, else a hub id.

    That is Qwen3-VL of 4B in 4 bits, of 2B where this machine's memory is short.
    """
    if chosen := os.environ.get("SEEONCE_MODEL"):
        return chosen
    if recording_id == DEMO:
        return DEMO
    return SMALL_MODEL if memory_bytes() < _SHORT_BYTES else DEFAULT_MODEL


def find_checkpoint(model: str, announce: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint of ``model``, a local path or a hub id with an optional ``@revision``.

    ``announce`` receives the size before anything is downloaded.

    Raises:
        CheckpointError: there is no such folder, no such model on the hub or no way to it, or it is not
            supported.
    """
    local = user_path(model)
    if model == DEMO:
        local = _bundled()
    if model and local.is_dir():  # Path("") is where the user stands
        return read_checkpoint(local.resolve())
    hub_id = _HUB_ID.match(model)
    if hub_id is None or local.exists() or model.startswith((".", "~", "/")):
        raise CheckpointError(
            f"No model folder at {model!r}: give a folder with config.json and *.safetensors, "
            f"or a hub id such as {DEFAULT_MODEL}."
        )
    return _from_hub(hub_id["repo"], hub_id["revision"], announce)


def _bundled() -> Path:
    """Return the folder of the demo's checkpoint in the installed package, without importing it."""
    folder = Path(__file__).parents[1] / "seeonce" / "demo" / "checkpoint"
    if not folder.is_dir():
        raise CheckpointError("The demo checkpoint is not installed: reinstall seeonce.")
    return folder


def _from_hub(repo: str, revision: str | None, announce: Callable[[str], None]) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=list(_FILES)
        )
        path = Path(cached)
        if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
            return read_checkpoint(path, repo, path.name)
    except LocalEntryNotFoundError:
        pass
    return _download(repo, revision, announce)


def _download(repo: str, revision: str | None, announce: Callable[[str], None]) -> Checkpoint:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        num_bytes = sum(file.size or 0 for file in info.siblings or () if Path(file.rfilename).match("*.*"))
        announce(f"Downloading {repo} ({num_bytes / 1e9:.1f} GB) once; later runs need no network.")
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:
        reason = type(error).__name__
        raise CheckpointError(
            f"{repo} is not on this machine and could not be downloaded ({reason}): check the name and "
            "the network, or give a local folder with --model PATH or SEEONCE_MODEL."
        ) from error
    return read_checkpoint(path, repo, path.name)


def has_thinking_switch(folder: Path) -> bool:
    """Tell whether a checkpoint's chat template turns reasoning on and off by ``enable_thinking``."""
    files = [*folder.glob("*.jinja"), folder / "chat_template.json", folder / "tokenizer_config.json"]
    return any(b"enable_thinking" in file.read_bytes() for file in files if file.is_file())


def require_weights(folder: Path) -> None:
    """Check that ``folder`` has weight files.

    Raises:
        CheckpointError: it has none.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has a config.json but no *.safetensors: give a folder with weights to --model."
        )
