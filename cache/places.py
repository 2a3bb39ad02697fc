"""Files as manifests name them, and whether a file is one of those.

Owns the written form of a path, and the way back from what a manifest says to files. Opens no file.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(path: Path | str) -> str:
    """Give a path as one line of valid Unicode: what no terminal or JSON file takes is escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(path))


class Places:
    """Files and folders, as a manifest has them: also with a place in them, as in ``video.mp4#pts=12``."""

    def __init__(self, named: Iterable[str]) -> None:
        """Take the path of a recording, and the sources of its frames."""
        self._named = {form for name in named for form in (name, name.rpartition("#")[0]) if form}

    def names(self, path: str) -> bool:
        """Say whether this very file is named."""
        return printable(path) in self._named

    def hold(self, path: str) -> bool:
        """Say whether a file is named, or lies anywhere in a folder that is."""
        whole = PurePath(printable(path))
        return self.names(path) or any(str(folder) in self._named for folder in whole.parents)
