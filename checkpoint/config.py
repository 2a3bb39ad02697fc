"""Reads config.json: which architecture a checkpoint has, and the sizes that both passes need.

Accepts what mlx-vlm writes and what transformers writes, and knows how to say the latter in the
words that mlx-vlm reads. Of the weights it asks the names alone, where the file contradicts itself.
Imports no MLX.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.base.errors import CheckpointError
from checkpoint.families import FAMILIES
from checkpoint.family import Family, LayerState


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the vision tower that its weights alone do not tell."""

    depth: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    deepstack_visual_indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextShape:
    """What each layer of the language model keeps of a row, and the context length."""

    layers: tuple[LayerState, ...]
    hidden_size: int
    max_context: int


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The token id that stands for an image in a prompt, and those that end an answer."""

    image: int
    eos: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with the files of a supported checkpoint, and what its config.json says.

    ``revision`` is the hub's commit, empty for a local folder. ``mlx_vlm_json`` is the whole configuration in
    the words that mlx-vlm reads; ``rewritten`` tells whether it differs from the file.
    """

    path: Path
    name: str
    revision: str
    family: Family
    vision: VisionShape
    text: TextShape
    tokens: SpecialTokens
    mlx_vlm_json: str
    rewritten: bool

    @property
    def architecture(self) -> str:
        """The name of the architecture, as config.json and mlx-vlm have it."""
        return self.family.architecture


def read_checkpoint(folder: Path, name: str = "", revision: str = "") -> Checkpoint:
    """Read ``folder``/config.json. Without a ``name`` the checkpoint has the folder's.

    Raises:
        CheckpointError: it is missing, broken, or of an architecture that is not supported.
    """
    found = _read_json(folder / "config.json")
    architecture = found.get("model_type")
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        titles = [supported.title for supported in FAMILIES.values()]
        raise CheckpointError(
            f"{folder.name} is a {architecture!r} checkpoint; supported are {', '.join(titles[:-1])} and "
            f"{titles[-1]} ({', '.join(FAMILIES)}). Give another with --model."
        )
    try:
        config = _in_mlx_vlm_words(found, folder, family)
        text = config["text_config"]
        return Checkpoint(
            path=folder,
            name=name or folder.name,
            revision=revision,
            family=family,
            vision=_vision_shape(config["vision_config"]),
            text=TextShape(
                family.layers(text), int(text["hidden_size"]), int(text["max_position_embeddings"])
            ),
            tokens=_special_tokens(config, folder),
            mlx_vlm_json=json.dumps(config),
            rewritten=config != found,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks or garbles a field of {architecture} ({error!r}): "
            "download the checkpoint again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no config.json: --model takes a folder with config.json and *.safetensors."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download the checkpoint again.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds no JSON object: download the checkpoint again.")
    return parsed


def _in_mlx_vlm_words(found: dict[str, Any], folder: Path, family: Family) -> dict[str, Any]:
    """Say a transformers configuration as mlx-vlm 0.7.10 reads it.

    transformers 5 writes ``vision_config.model_type`` as ``qwen3_vl_vision``, which mlx-vlm refuses, and a
    ``tie_word_embeddings`` in ``text_config`` that means nothing beside the outer one.
    """
    text, vision = dict(found["text_config"]), dict(found["vision_config"])
    if vision.get("model_type", family.architecture) in (
        f"{family.architecture}_vision",
        family.architecture,
    ):
        vision["model_type"] = family.architecture
    tied = found.get("tie_word_embeddings")
    if tied is not None and text.get("tie_word_embeddings", not tied) != tied:
        names = tensor_names(folder)
        text["tie_word_embeddings"] = not any("lm_head." in name for name in names) if names else tied
    config = found | {"text_config": text, "vision_config": vision}
    family.say_as_mlx_vlm(config)
    return config


def _vision_shape(vision: dict[str, Any]) -> VisionShape:
    return VisionShape(
        depth=int(vision["depth"]),
        hidden_size=int(vision["hidden_size"]),
        num_heads=int(vision["num_heads"]),
        out_hidden_size=int(vision["out_hidden_size"]),
        num_position_embeddings=int(vision["num_position_embeddings"]),
        patch_size=int(vision["patch_size"]),
        merge_size=int(vision["spatial_merge_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        deepstack_visual_indexes=tuple(int(index) for index in vision["deepstack_visual_indexes"]),
    )


def _special_tokens(config: dict[str, Any], folder: Path) -> SpecialTokens:
    """Read the token ids; as in mlx-vlm, generation_config.json has the last word on ``eos_token_id``."""
    generation = folder / "generation_config.json"
    override = _read_json(generation) if generation.is_file() else {}
    eos = _as_ids(override.get("eos_token_id", config.get("eos_token_id")))
    return SpecialTokens(
        image=int(config.get("image_token_id", 151655)),
        eos=tuple(dict.fromkeys(eos)),
    )


def _as_ids(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []


def tensor_names(folder: Path) -> list[str]:
    """Return the names of all tensors in the weight files of ``folder``.

    Raises:
        CheckpointError: a file is damaged or shorter than its header says.
    """
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as opened:
                names += opened.keys()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}): download the checkpoint again."
            ) from error
    return names
