"""A path as a user writes it, on a command line or in a file."""

import os
from pathlib import Path

from cache.errors import InputError

STANDARD_OUTPUT = Path("-")


def user_path(text: str | Path) -> Path:
    """Return the path, ``~`` being the user's home; that of a user who is not there stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError there)


def output_path(path: Path, option: str) -> Path:
    """Return where a user wants a file, as ``user_path`` does.

    Raises:
        InputError: it is ``-``, which means standard output elsewhere and is not written here.
    """
    if path == STANDARD_OUTPUT:
        raise InputError(f"{option} - is no file: name one, as in {option} ./-")
    return user_path(path)
