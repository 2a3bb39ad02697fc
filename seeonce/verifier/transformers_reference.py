"""Hugging Face's PyTorch vision tower as a second reference: ``verify-cache --against transformers``.

It takes the weights as mlx-vlm reads them and the pictures as mlx-vlm's processor preprocesses them: what is
compared is the computation. torch is an extra.
"""

import json
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.base.errors import CannotCheckError, StalePictureError
from cache.base.listener import Listener
from cache.entry import STORED_DTYPES, Features
from cache.key import EncoderSpec
from cache.store import Store
from checkpoint import backend
from checkpoint.config import Checkpoint
from checkpoint.identity import image_processor
from checkpoint.loading import load_model
from precompute.live import LiveFrames
from seeonce.runs.recording import Selected
from seeonce.verifier.differences import as_float32, feature_differences, feature_problem, layer_figures
from seeonce.verifier.report import Check, Tolerances
from seeonce.verifier.sample import Group

if TYPE_CHECKING:
    from PIL import Image


def check_against_transformers(
    store: Store,
    selected: Selected,
    sample: list[Group],
    live: LiveFrames,
    allowed: Tolerances,
    listener: Listener,
) -> Check:
    """Compare the stored features of a sample with transformers'."""
    num_total = len({frame.key for frame in selected.manifest.frames})
    try:
        encode = _encoder(selected.checkpoint, selected.manifest.encoder)
    except CannotCheckError as error:
        return Check("transformers", True, "not checked", 0, num_total, (), (str(error),))
    problems, unchecked, compared = [], [], []
    for number, group in enumerate(sample, 1):
        # a frame that shows the picture of its entry, not that of a near duplicate
        frame = next((frame for frame in group if frame.neighbour is None), group[0])
        stored = store.read(frame.key)
        try:
            if stored is None:
                raise StalePictureError("its entry is missing or damaged")
            theirs, mine = encode(live.image(frame)), _widened(stored)
            differences = feature_differences(mine, theirs)
            compared += [differences] if differences is not None else []
            problem = feature_problem(mine, theirs, differences, allowed.features_other)
            problems += [] if problem is None else [f"frame {frame.index}: {problem}"]
        except StalePictureError as error:
            problems.append(f"frame {frame.index}: {error}")
        except CannotCheckError as error:
            unchecked.append(str(error))
        listener.show("transformers", "entry", number, len(sample))
    layers = layer_figures(compared)
    furthest = max((layer.relative for layer in layers), default=0.0)
    version = backend.installed_version("transformers")
    words = (
        f"{len(compared)} of {num_total} entries against transformers {version}"
        f" in PyTorch, float32, same preprocessed pictures: at most {furthest:.2g} relative apart, tolerance "
        f"{allowed.features_other:g}"
    )
    return Check(
        "transformers", not problems, words, len(compared), num_total, tuple(problems), tuple(unchecked),
        layers=layers,
    )  # fmt: skip


def _encoder(checkpoint: Checkpoint, spec: EncoderSpec) -> Callable[["Image.Image"], Features]:
    """Load transformers' vision model in float32 on the CPU; return what encodes a picture with it.

    Raises:
        CannotCheckError: torch or this model of transformers is not installed.
    """
    torch = _import_torch()
    processor = image_processor(checkpoint)
    processor.min_pixels = spec.preprocessing.min_pixels
    processor.max_pixels = spec.preprocessing.max_pixels
    model = _model(checkpoint)
    weights = {name: torch.from_numpy(value) for name, value in _weights(checkpoint).items()}
    model.load_state_dict(weights, strict=True)
    model.eval()

    def encode(image: "Image.Image") -> Features:
        inputs = processor(images=[image])
        grid = np.asarray(inputs["image_grid_thw"])
        with torch.no_grad():
            found = model(torch.from_numpy(np.asarray(inputs["pixel_values"])), torch.from_numpy(grid))
        deepstack = getattr(found, "deepstack_features", None) or ()
        layers = np.stack([layer.numpy() for layer in (found.pooler_output, *deepstack)])
        array = np.ascontiguousarray(layers, STORED_DTYPES["float32"])
        time, height, width = (int(size) for size in grid[0])
        return Features(array, "float32", (time, height, width), spec.preprocessing.merge_size)

    return encode


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise CannotCheckError(
            "--against transformers needs PyTorch, which is not installed: "
            "pip install 'seeonce[transformers-reference]'."
        ) from error
    return torch


_CLASSES = {
    "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe", "qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe",
}  # fmt: skip


def _model(checkpoint: Checkpoint) -> Any:
    found = json.loads(checkpoint.mlx_vlm_json)["vision_config"]
    name = checkpoint.architecture
    try:
        configuration = import_module(f"transformers.models.{name}.configuration_{name}")
        modeling = import_module(f"transformers.models.{name}.modeling_{name}")
    except ImportError as error:
        raise CannotCheckError(
            f"This transformers has no {checkpoint.family.title} in PyTorch ({error}): upgrade it."
        ) from error
    stem = _CLASSES.get(name)
    if stem is None:
        raise CannotCheckError(
            f"--against transformers does not know {checkpoint.family.title}: leave it out."
        )
    settings = {name: value for name, value in found.items() if name != "model_type"}
    vision_config = getattr(configuration, f"{stem}VisionConfig")(**settings)
    return getattr(modeling, f"{stem}VisionModel")(vision_config).float()


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the vision weights by transformers' names, float32; what is quantised is unpacked."""
    mx = backend.import_mlx()
    from mlx.utils import tree_flatten

    tower = load_model(checkpoint).vision_tower
    weights: dict[str, Any] = dict(tree_flatten(tower.parameters()))
    for name, module in tower.named_modules():
        if hasattr(module, "bits") and hasattr(module, "group_size"):
            packed = (weights.pop(f"{name}.{part}", None) for part in ("weight", "scales", "biases"))
            weights[f"{name}.weight"] = mx.dequantize(
                *packed,
                group_size=module.group_size,
                bits=module.bits,
                mode=getattr(module, "mode", "affine"),
            )
    patches = "patch_embed.proj.weight"
    weights[patches] = weights[patches].transpose(0, 4, 1, 2, 3)  # mlx keeps channels last
    return {name: np.array(value.astype(mx.float32)) for name, value in weights.items()}


def _widened(features: Features) -> Features:
    array = np.ascontiguousarray(as_float32(features.array), STORED_DTYPES["float32"])
    return Features(array, "float32", features.grid_thw, features.merge_size)
