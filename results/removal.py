"""Removal of the runs of a recording that is forgotten.

Owns: which runs are of it. Does not own: what is in a run (``results.run``).
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from cache.home import Home


def remove_runs(home: Home, recording_id: str) -> int:
    """Remove every run that asked about this recording alone; return how many there were.

    A run whose ``run.json`` cannot be read is kept: nobody knows whose it is.
    """
    num_removed = 0
    for path in sorted(home.runs.iterdir()) if home.runs.is_dir() else []:
        if path.is_dir() and not path.is_symlink() and _recording_of(path) == recording_id:
            shutil.rmtree(path, ignore_errors=True)
            num_removed += not path.exists()
    return num_removed


def _recording_of(run: Path) -> object:
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((run / "run.json").read_text(encoding="utf-8")).get("recording")
    return None
