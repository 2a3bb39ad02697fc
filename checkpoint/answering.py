"""The identity of what answers: a digest over every file of a checkpoint that can change an answer.

Weights, configuration, tokenizer and chat template, byte for byte. Reading gigabytes takes a second or
two, so the digest is remembered under the stat of the files. Does not load a model.
"""

import time
from pathlib import Path

from blake3 import blake3

from cache.errors import CheckpointError
from cache.pixel_index import RACY_NS, PixelIndex
from checkpoint.folder import CheckpointFolder

_PATTERNS = (
    "*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.py", "*chat_templates/*",
)  # fmt: skip
_CONTEXT = "seeonce 2026-11 files that answer, version 1"


def model_id(folder: CheckpointFolder, index: PixelIndex) -> str:
    """Return 64 hex digits: the same digest means the same files, so the same answers.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = sorted(file for pattern in _PATTERNS for file in folder.path.glob(pattern) if file.is_file())
    try:
        note = "model/" + _stat_digest(files)
        known = index.get_note(note)
        if known is None:
            known = _content_digest(folder.path, files)
            if not _racy(files):
                index.put_note(note, known)
    except OSError as error:
        raise CheckpointError(
            f"{folder.path} cannot be read ({error.strerror}): check the folder."
        ) from error
    return known


def _stat_digest(files: list[Path]) -> str:
    hasher = blake3()
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
