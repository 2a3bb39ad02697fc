"""The identity of a checkpoint's encoder: its weights' digest, its preprocessing, its dtype.

Hashing a vision tower takes seconds and needs mlx-vlm, so the result is remembered under the stat of
every file that can change it. Does not encode anything.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from blake3 import blake3

from cache.base.canonical_json import record_to_json
from cache.base.errors import CheckpointError, InputError, StoreError
from cache.base.home import Home
from cache.key import EncoderId, EncoderSpec, Preprocessing, weights_digest
from cache.pixel_index import RACY_NS, PixelIndex
from checkpoint.backend import compute_dtype, import_mlx, installed_version
from checkpoint.config import Checkpoint
from checkpoint.folder import DEMO, default_model, find_checkpoint, require_weights
from checkpoint.loading import load_model, readable_folder

ENCODER_EPOCH = 1
"""Raised when our own encoding code changes results, so that older entries are no longer hits."""
_PATTERNS = (
    "*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.py", "*chat_templates/*",
)  # fmt: skip
_CONTEXT = "seeonce 2026-11 files that answer, version 1"


def find_encoder(
    home: Home, model: str, announce: Callable[[str], None], max_pixels: int | None = None
) -> tuple[Checkpoint, EncoderSpec]:
    """Find a checkpoint by its folder or hub id, and say what it is. Raises as ``encoder_spec`` does."""
    checkpoint = find_checkpoint(model, announce)
    with PixelIndex(home) as index:
        return checkpoint, encoder_spec(checkpoint, index, max_pixels)


def encoder_spec(checkpoint: Checkpoint, index: PixelIndex, max_pixels: int | None = None) -> EncoderSpec:
    """Return the encoder of the checkpoint as pass one runs it on this machine.

    ``max_pixels`` lowers the checkpoint's own limit. Imports mlx-vlm only when a file of the
    checkpoint has changed since it was last asked.

    Raises:
        CheckpointError: the weights are missing or do not load.
        InputError: ``max_pixels`` is too small for one merged token.
    """
    require_weights(checkpoint.path)
    note = _encoder_note(checkpoint.path)
    spec = None
    with suppress(ValueError, StoreError):  # no such note, or one of another version
        spec = EncoderSpec.from_json(json.loads(index.get_note(note) or ""))
    if spec is None:
        spec = _resolve(checkpoint)
        index.put_note(note, json.dumps(record_to_json(spec)))
    spec = dataclasses.replace(spec, compute_dtype=compute_dtype(spec.compute_dtype))
    return spec if max_pixels is None else with_max_pixels(spec, max_pixels)


def remember_model(index: PixelIndex, encoder_id: EncoderId, model: str, checkpoint: Checkpoint) -> None:
    """Note which model a recording is encoded with, by the name or the folder that finds it again."""
    is_place = not checkpoint.revision and model != DEMO
    name, text = _model_note(encoder_id), str(checkpoint.path) if is_place else model
    if text.isprintable() and index.get_note(name) != text:
        index.put_note(name, text)


def model_of(home: Home, recording_id: str, encoder_id: EncoderId | None) -> str:
    """Return SEEONCE_MODEL, else the model that a recording was encoded with, else the default one.

    Raises:
        CheckpointError: it was encoded with a model whose folder is gone.
    """
    noted = None
    if encoder_id is not None and not os.environ.get("SEEONCE_MODEL"):
        with PixelIndex(home) as index:
            noted = index.get_note(_model_note(encoder_id))
    if noted is not None and Path(noted).is_absolute() and not Path(noted).is_dir():
        raise CheckpointError(
            f"{recording_id} was encoded with the model in {noted}, which is not there: "
            "give the folder that it is in now with --model."
        )
    return noted or default_model(recording_id)


def _encoder_note(folder: Path) -> str:
    """Name the note of an encoder by all files that it depends on, and the versions that read them."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return "encoder/" + _stat_digest(files, installed_version("mlx-vlm"), str(ENCODER_EPOCH))


def _model_note(encoder_id: EncoderId) -> str:
    return f"model/{encoder_id.hex}"


def with_max_pixels(spec: EncoderSpec, max_pixels: int) -> EncoderSpec:
    """Lower the number of pixels that a frame is resized to.

    Raises:
        InputError: fewer pixels than one merged token covers.
    """
    preprocessing = spec.preprocessing
    least = (preprocessing.patch_size * preprocessing.merge_size) ** 2
    if max_pixels < least:
        raise InputError(
            f"--max-pixels is {max_pixels}; one merged token alone covers {least} pixels: give more, "
            "as in --max-pixels 1000000."
        )
    lowered = min(max_pixels, preprocessing.max_pixels)
    resolved = dataclasses.replace(
        preprocessing, max_pixels=lowered, min_pixels=min(preprocessing.min_pixels, lowered)
    )
    return dataclasses.replace(spec, preprocessing=resolved)


def image_processor(checkpoint: Checkpoint) -> Any:
    """Return mlx-vlm's image processor as the live path builds it for this checkpoint."""
    import_mlx()
    from mlx_vlm.models.qwen3_vl import processing_qwen3_vl as processing

    with readable_folder(checkpoint) as path:
        return processing.Qwen3VLImageProcessor(**processing._qwen_vl_image_kwargs(str(path)))


def _resolve(checkpoint: Checkpoint) -> EncoderSpec:
    model = load_model(checkpoint)
    if model.vision_tower is None:
        raise CheckpointError(f"{checkpoint.path} has no vision tower: give a checkpoint that has one.")
    shape = checkpoint.vision
    checkpoint_dtype = _dtype_name(model.vision_tower.patch_embed.proj.weight)
    quantization = _quantization(model.vision_tower)  # no name here for the tower: it would hold its weights
    return EncoderSpec(
        architecture=checkpoint.architecture,
        depth=shape.depth,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        out_hidden_size=shape.out_hidden_size,
        num_position_embeddings=shape.num_position_embeddings,
        deepstack_visual_indexes=shape.deepstack_visual_indexes,
        quantization=quantization,
        preprocessing=_preprocessing(image_processor(checkpoint)),
        compute_dtype=checkpoint_dtype,
        epoch=ENCODER_EPOCH,
        weights=weights_digest(_tensors(model)),
    )


def _tensors(model: Any) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Yield the vision weights by name after mlx-vlm's ``sanitize``, holding one at a time."""
    mx = import_mlx()
    from mlx.utils import tree_flatten

    parameters: Any = tree_flatten(model.vision_tower.parameters())
    flat: list[tuple[str, Any]] = sorted(parameters, key=itemgetter(0))
    del parameters
    model.vision_tower = None
    flat.reverse()
    while flat:
        name, array = flat.pop()
        yield name, _dtype_name(array), tuple(array.shape), bytes(mx.contiguous(array).view(mx.uint8))
        del array


def _dtype_name(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _quantization(vision: Any) -> str:
    """Say which modules of the vision tower are quantised and how, as canonical JSON."""
    found = {
        name: [module.bits, module.group_size, getattr(module, "mode", "affine")]
        for name, module in vision.named_modules()
        if hasattr(module, "bits") and hasattr(module, "group_size")
    }
    return json.dumps(found, sort_keys=True, separators=(",", ":")) if found else "none"


def lowest_vision_bits(spec: EncoderSpec) -> int | None:
    """Return the fewest bits that a module of the vision tower is quantised to, ``None`` if none is."""
    if spec.quantization == "none":
        return None
    return min(int(entry[0]) for entry in json.loads(spec.quantization).values())


def _preprocessing(processor: Any) -> Preprocessing:
    return Preprocessing(
        processor_class=type(processor).__name__,
        min_pixels=int(processor.min_pixels),
        max_pixels=int(processor.max_pixels),
        patch_size=int(processor.patch_size),
        merge_size=int(processor.merge_size),
        temporal_patch_size=int(processor.temporal_patch_size),
        do_rescale=bool(processor.do_rescale),
        rescale_factor=float(processor.rescale_factor),
        do_normalize=bool(processor.do_normalize),
        image_mean=tuple(float(value) for value in processor.image_mean),
        image_std=tuple(float(value) for value in processor.image_std),
        resample="bicubic",
    )


def model_id(checkpoint: Checkpoint, index: PixelIndex) -> str:
    """Return 64 hex digits: the same digest means the same files, so the same answers.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = sorted(file for pattern in _PATTERNS for file in checkpoint.path.glob(pattern) if file.is_file())
    try:
        note = "model/" + _stat_digest(files)
        known = index.get_note(note)
        if known is None:
            known = _content_digest(checkpoint.path, files)
            if not _racy(files):
                index.put_note(note, known)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.path} cannot be read ({error.strerror}): check the folder."
        ) from error
    return known


def _stat_digest(files: list[Path], *versions: str) -> str:
    """Digest the stat of every file, and the versions of what reads them."""
    hasher = blake3("".join(f"{version}\0" for version in versions).encode())
    for file in files:
        stat = file.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        hasher.update(f"{file}\0{stamp}\0".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


def _racy(files: list[Path]) -> bool:
    """Tell whether a file changed so shortly ago that another change may leave its stat as it is."""
    newest = max((max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in map(Path.stat, files)), default=0)
    return time.time_ns() - newest < RACY_NS


def _content_digest(folder: Path, files: list[Path]) -> str:
    hasher = blake3(derive_key_context=_CONTEXT)
    for file in files:
        digest = blake3(max_threads=blake3.AUTO).update_mmap(file).digest()
        name = str(file.relative_to(folder)).encode("utf-8", "surrogateescape")
        hasher.update(len(name).to_bytes(8, "little") + name + digest)
    return hasher.hexdigest()
