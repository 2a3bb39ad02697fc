"""A path as a user writes it, on a command line or in a file."""

import os
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """Return the path, ``~`` being the user's home; that of a user who is not there stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises RuntimeError there)
