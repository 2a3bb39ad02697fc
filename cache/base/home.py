"""Where seeonce keeps everything: one private folder."""

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cache.base.errors import StoreError
from cache.base.files import Durability, Folder

STORE = "store"

# https://bford.info/cachedir/: backup programs leave such a folder out.
_TAG_NAME = "CACHEDIR.TAG"
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds the embedding store of seeonce.\n"

_SYNCHRONISED = {
    "dropbox": "Dropbox",
    "mobile documents": "iCloud Drive",
    "cloudstorage": "a cloud provider",
    "onedrive": "OneDrive",
    "google drive": "Google Drive",
    "googledrive": "Google Drive",
}


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of SEEONCE_HOME; it may not exist yet."""

    path: Path

    @property
    def store(self) -> Path:
        """The embedding store."""
        return self.path / STORE

    @property
    def runs(self) -> Path:
        """One folder for each run of pass two."""
        return self.path / "runs"

    @classmethod
    def locate(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Find the home: SEEONCE_HOME, else ``~/.seeonce``. Nothing is created.

        Raises:
            StoreError: it may not be looked into.
        """
        chosen = environ.get("SEEONCE_HOME", "").strip()
        # abspath, not resolve: a symlink that the user set up stays what they see in messages.
        home = cls(Path(os.path.abspath(Path(chosen).expanduser() if chosen else Path.home() / ".seeonce")))  # noqa: PTH100
        for folder in (home.path, home.store, home.runs):
            try:
                # The dot, since looking into a folder is another permission.
                os.scandir(f"{folder}/.").close()
            except PermissionError as error:
                name = ("SEEONCE_HOME" if chosen else "~/.seeonce") + str(folder)[len(str(home.path)) :]
                raise StoreError(
                    f"{name} cannot be looked into ({error.strerror}): run chmod 700 {_in_a_shell(folder)}, "
                    "or set SEEONCE_HOME to a folder of yours"
                ) from error
            except OSError:  # usually not there yet; what else is wrong is said where it is used
                continue
        return home

    def prepare(self) -> None:
        """Create the folder, mode 0700, marked as a cache and left out of Time Machine.

        Raises:
            StoreError: it cannot be created.
        """
        try:
            created = self._create()
            with Folder.open_root(self.path) as folder:
                if created:
                    os.fchmod(folder.fd, stat.S_IRWXU)
                if folder.identity_of(_TAG_NAME) is None:
                    folder.write_once(_TAG_NAME, _TAG, Durability.none)
        except OSError as error:
            raise StoreError(
                f"cannot use {self.path} as SEEONCE_HOME: {error.strerror}; check its permissions, or set "
                "SEEONCE_HOME to a folder that you can write to"
            ) from error
        if created and sys.platform == "darwin":
            _leave_out_of_time_machine(self.path)

    def _create(self) -> bool:
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=stat.S_IRWXU)
        except FileExistsError:
            return False
        for path in missing:  # a power cut must not take the name that everything below hangs on
            # Not every filesystem can, and not everywhere may we: a commit says so where it matters.
            with suppress(OSError), Folder.open_root(path.parent) as parent:
                parent.sync(Durability.full)
        return True

    def warnings(self) -> list[str]:
        """Say what endangers the privacy of the home, one line each; empty when nothing does."""
        lines = []
        if service := _synchronised_by(self.path):
            lines.append(
                f"{self.path} lies in a folder that {service} synchronises: the store holds what was on "
                "your screen; set SEEONCE_HOME to a folder outside it"
            )
        with suppress(OSError):
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode & 0o077:
                lines.append(
                    f"{self.path} is open to other users (mode {mode:04o}): "
                    f"run chmod 700 {_in_a_shell(self.path)}"
                )
        return lines


def _in_a_shell(path: Path) -> str:
    """Write a path of the home so that it can be typed, and shown to strangers."""
    chosen = os.environ.get("SEEONCE_HOME", "").strip()
    home, name = (Path(chosen).absolute(), '"$SEEONCE_HOME"') if chosen else (Path.home(), "~")
    return (
        f"{name}/{path.relative_to(home)}".removesuffix("/.")
        if path.is_relative_to(home)
        else shlex.quote(str(path))
    )


def _synchronised_by(path: Path) -> str | None:
    with suppress(OSError):
        path = path.resolve()
    for part in path.parts:
        for marker, service in _SYNCHRONISED.items():
            # "OneDrive - Company" and "Dropbox (Work)" are the same services.
            if part.lower() == marker or part.lower().startswith((f"{marker} ", f"{marker}-")):
                return service
    return None


def _leave_out_of_time_machine(path: Path) -> None:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/bin/tmutil", "addexclusion", str(path)]
        subprocess.run(command, check=False, capture_output=True, timeout=10)  # noqa: S603
