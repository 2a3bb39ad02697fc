"""Reads the headers of safetensors files: names and shapes of tensors, and whether a file was cut short.

Owns what a checkpoint's weight files say without their data. Reads no tensor and imports no MLX.
"""

import json
from pathlib import Path

from cache.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # as the format's own reader
_LENGTH_BYTES = 8


def require_weights(folder: Path) -> None:
    """Check that ``folder`` has weight files.

    Raises:
        CheckpointError: it has none.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has a config.json but no *.safetensors: give a folder with weights to --model."
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the weight files of ``folder``, by its name in the file.

    Raises:
        CheckpointError: a file is damaged or shorter than its header says.
    """
    return {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _shapes(file)}


def _shapes(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Read one header: eight bytes of length, then JSON. Source: the safetensors format."""
    try:
        num_bytes = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if length > min(_MAX_HEADER_BYTES, num_bytes):
                raise ValueError("its header is cut short")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        shapes = [(name, tuple(map(int, tensor["shape"]))) for name, tensor in header.items()]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): download the checkpoint again.") from error
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if num_bytes < expected:
        raise CheckpointError(
            f"{file} is cut short ({num_bytes:,} of {expected:,} bytes): download the checkpoint again."
        )
    return shapes
