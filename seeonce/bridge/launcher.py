"""The launcher that Escribano runs as its Python: pictures go to the bridge, all else to the real one."""

import os
import shlex
import sys
from pathlib import Path

from cache.base.errors import InputError
from cache.base.files import write_private
from cache.base.home import Home
from cache.base.text import printable

NAME = "escribano-python"
_MADE = "# Written by seeonce bridge --install"

_SCRIPT = """#!/bin/sh
{made}: Escribano runs it as its Python.
# With --mode vlm it is seeonce's bridge; anything else is for the Python below.
before=
for word in "$@"; do
    if [ "$before" = --mode ] && [ "$word" = vlm ]; then
        [ -n "$SEEONCE_HOME" ] || SEEONCE_HOME={home}
        export SEEONCE_HOME
        exec {ours} -P -m seeonce bridge --mode vlm{options}
    fi
    before=$word
done
exec {theirs} "$@"
"""


def install(home: Home, path: Path | None, python: Path | None, max_pixels: int | None) -> tuple[Path, Path]:
    """Write the launcher, by default into the home, and return it with the Python that it passes on to.

    Raises:
        InputError: there is no such Python, or another file is in the way.
        StoreError: the disk refuses.
    """
    place = path or home.path / NAME
    theirs = python or _real_python()
    if not os.access(theirs, os.X_OK) or place.resolve() == theirs.resolve():
        raise InputError(f"{printable(theirs)} is no Python that Escribano can run: name one with --python.")
    if place.exists() and _MADE not in place.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{printable(place)} is there and is not ours: name another file for the launcher.")
    if path is None:
        home.prepare()
    options = "" if max_pixels is None else f" --max-pixels {max_pixels}"
    script = _SCRIPT.format(
        made=_MADE,
        home=shlex.quote(str(home.path)),
        ours=shlex.quote(sys.executable),
        options=options,
        theirs=shlex.quote(str(theirs)),
    )
    write_private(place, script.encode())
    place.chmod(0o700)
    return place, theirs


def _real_python() -> Path:
    """Return the Python that Escribano would take: its own environment's, else the one of this command."""
    own = Path.home() / ".escribano" / "venv" / "bin" / "python3"
    return own if own.exists() else Path(sys.executable)
