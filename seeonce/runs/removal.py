"""Removal of the runs of a recording that is forgotten.

Owns: which runs are of it. Does not own: what is in a run (``seeonce.runs.run``).
"""

import shutil

from cache.home import Home
from cache.leases import living_leases
from seeonce.runs.reading import info_fields


def remove_runs(home: Home, recording_id: str) -> int:
    """Remove every run that asked about this recording; return how many there were.

    A run whose ``run.json`` cannot be read is kept: nobody knows whose it is. So is one that is not ended
    while some command holds a lease: it may be that one's.
    """
    busy, num_removed = bool(living_leases(home.store)), 0
    for path in sorted(home.runs.iterdir()) if home.runs.is_dir() else []:
        fields = info_fields(path)
        recording, status = fields.get("recording"), fields.get("status")
        if recording == recording_id and not path.is_symlink() and not (busy and status == "running"):
            shutil.rmtree(path, ignore_errors=True)
            num_removed += not path.exists()
    return num_removed
