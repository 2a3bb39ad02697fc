"""Writes a run while it goes on, and the file that ``--output`` names.

A line is written as each answer finishes, and ``run.json`` again at the end, so an interrupted run keeps
what it had. Whoever writes holds a lock (``seeonce.runs.lock``), so that two runs never mix their lines.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from cache.errors import InputError
from cache.user_path import output_path
from seeonce.runs.lock import lock_file, refused
from seeonce.runs.run import INFO_NAME, RESULTS_NAME, Result, RunInfo

# Line separators of Unicode, at which some readers split lines.
_SEPARATORS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class OutputFile:
    """The user's own file of results: emptied when the first line comes, not before.

    Several runs of one command may write to it, one after the other.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and lock it.

        Raises:
            InputError: it cannot be written, or another run is writing it.
        """
        try:
            self._file: IO[bytes] = output_path(path, "--output").open("ab")
        except OSError as error:
            raise InputError(
                f"--output {path} cannot be written ({error.strerror}): give another file."
            ) from error
        self._to_empty = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)  # not a pipe or a terminal
        if self._to_empty and not lock_file(self._file.fileno()):
            self._file.close()
            raise InputError(f"--output {path} is being written by another run: wait, or give another file.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was written
            self._file.close()

    def write(self, line: bytes) -> None:
        """Append a line, at once. Raises ``OSError``."""
        if self._to_empty:
            self._file.truncate(0)  # only now: a run that fails before must not cost earlier results
            self._to_empty = False
        self._file.write(line)
        self._file.flush()


class RunWriter:
    """Writes one run; use as a context manager."""

    def __init__(
        self, path: Path, info: RunInfo, output: OutputFile | None = None, kept: Iterable[Result] = ()
    ) -> None:
        """Begin the run in the folder ``path``, whose lock the caller holds, with the lines ``kept``.

        Raises:
            StoreError: the home cannot be written.
        """
        self.path = path
        self._output = output
        with self._refusals():
            self._file = self._begin([line_of(result) for result in kept])
        self.write_info(info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was written
            self._file.close()

    def write(self, result: Result) -> None:
        """Append a line, at once.

        Raises:
            StoreError: the disk is full or refuses.
        """
        line = line_of(result)
        with self._refusals():
            self._file.write(line)
            self._file.flush()
            if self._output is not None:
                self._output.write(line)

    def write_info(self, info: RunInfo) -> None:
        """Replace run.json as a whole.

        Raises:
            StoreError: the disk is full or refuses.
        """
        fresh = self.path / f".{INFO_NAME}.new"
        with self._refusals():
            with _private(fresh) as file:
                file.write(_utf8(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n"))
            fresh.replace(self.path / INFO_NAME)

    def _begin(self, kept: list[bytes]) -> IO[bytes]:
        """Start the file with ``kept``: a reader sees the lines that were there before, or these."""
        fresh = self.path / f".{RESULTS_NAME}.new"
        file = _private(fresh)
        file.writelines(kept)
        file.flush()
        fresh.replace(self.path / RESULTS_NAME)
        if self._output is not None:
            for line in kept:
                self._output.write(line)
        return file

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refused(self.path, error) from error


def line_of(result: Result) -> bytes:
    """Return a result as its line of results.jsonl: one line to every reader, and always valid UTF-8."""
    text = json.dumps(asdict(result), ensure_ascii=False)
    for separator, escaped in _SEPARATORS.items():
        text = text.replace(separator, escaped)
    return _utf8(text + "\n")


def _utf8(json_text: str) -> bytes:
    # A file name that is no UTF-8 comes as lone surrogates: written as JSON's own escapes.
    return json_text.encode("utf-8", "backslashreplace")


def _private(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")
