"""A file that a user asked for with ``--output``: private, and whole or not there.

Owns that one write. Does not own what is written; runs and stores have writing of their own.
"""

import os
import secrets
from pathlib import Path

from cache.errors import InputError
from cache.user_path import output_path


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its user alone can read at once: the old content or the new, nothing between.

    What is there and no file, such as a pipe or /dev/null, is written to and not replaced.

    Raises:
        InputError: it cannot be written; what was there is still there.
    """
    target = output_path(path, "--output")
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
            return
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give another --output") from error
