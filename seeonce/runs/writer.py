"""How a run is written to ``runs/<id>/``, and to a file of the user's own: line by line, then in order."""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from cache.base.errors import InputError, disk_error
from cache.base.files import open_private
from cache.base.text import output_path
from seeonce.runs.lock import lock_file
from seeonce.runs.run import INFO_NAME, RESULTS_NAME, Result, RunInfo


def new_run_id(runs: Path) -> str:
    """Return an id that no run in ``runs`` has: date, time, fraction of the second. Ids sort by time."""
    while True:
        at = datetime.now(UTC)
        run_id = f"{at:%Y%m%d-%H%M%S}-{(at.microsecond << 16) // 1_000_000:04x}"
        if not (runs / run_id).exists():
            return run_id


# Line separators of Unicode, at which some readers split lines.
_SEPARATORS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


LinePlace = tuple[int, int]
"""Where a line belongs when its run is done: the number of its request, that of its frame in the request."""


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
            given = output_path(path, "--output")
            self._file = os.fdopen(os.open(given, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb")
        except OSError as error:
            raise InputError(
                f"--output {path} cannot be written ({error.strerror}): give another file."
            ) from error
        self._is_file = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)  # not a pipe or a terminal
        self._to_empty = self._is_file
        if self._is_file and not lock_file(self._file.fileno()):
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

    def replace_last(self, lines: Iterable[bytes], num_bytes: int) -> None:
        """Write the same lines in another order over the last ``num_bytes``. Raises ``OSError``."""
        if self._is_file and num_bytes:
            self._file.seek(-num_bytes, os.SEEK_CUR)
            self._file.writelines(lines)
            self._file.flush()


def opened(output: Path | None) -> AbstractContextManager[OutputFile | None]:
    """Open the user's own file of results, where one is given."""
    return nullcontext() if output is None else OutputFile(output)


class RunWriter:
    """Writes one run; use as a context manager."""

    def __init__(
        self,
        path: Path,
        info: RunInfo,
        output: OutputFile | None = None,
        kept: Iterable[tuple[LinePlace, Result]] = (),
    ) -> None:
        """Begin the run in the folder ``path``, whose lock the caller holds, with the lines ``kept``.

        Raises:
            StoreError: the home cannot be written.
        """
        self.path = path
        self._output = output
        self._lines: list[tuple[LinePlace, int]] = []  # of each line its place and its bytes, as they came
        with self._refusals():
            self._file = self._started([(place, line_of(result)) for place, result in kept])
        self.write_info(info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was written
            self._file.close()

    def write(self, result: Result, place: LinePlace) -> None:
        """Append a line, at once.

        Raises:
            StoreError: the disk is full or refuses.
        """
        line = line_of(result)
        with self._refusals():
            self._file.write(line)
            self._file.flush()
            self._lines.append((place, len(line)))
            if self._output is not None:
                self._output.write(line)

    def put_in_order(self) -> None:
        """Put the lines, which stand as their answers came, into the order in which they were asked.

        Raises:
            StoreError: the disk is full or refuses; the lines stay as they were.
        """
        if self._lines == sorted(self._lines):
            return
        spans = list[tuple[LinePlace, int, int]]()
        start = 0
        for place, size in self._lines:
            spans.append((place, start, size))
            start += size
        with self._refusals(), (self.path / RESULTS_NAME).open("rb") as file:

            def lines() -> Iterator[bytes]:
                for _, at, size in sorted(spans):
                    file.seek(at)
                    yield file.read(size)

            fresh = self.path / f".{RESULTS_NAME}.new"
            with open_private(fresh, "wb") as ordered:
                ordered.writelines(lines())
            fresh.replace(self.path / RESULTS_NAME)
            if self._output is not None:
                self._output.replace_last(lines(), start)

    def write_info(self, info: RunInfo) -> None:
        """Replace run.json as a whole.

        Raises:
            StoreError: the disk is full or refuses.
        """
        fresh = self.path / f".{INFO_NAME}.new"
        with self._refusals():
            with open_private(fresh, "wb") as file:
                file.write(_utf8(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n"))
            fresh.replace(self.path / INFO_NAME)

    def _started(self, kept: list[tuple[LinePlace, bytes]]) -> IO[bytes]:
        """Start the file with ``kept``: a reader sees the lines that were there before, or these."""
        fresh = self.path / f".{RESULTS_NAME}.new"
        file = open_private(fresh, "wb")
        for place, line in kept:
            file.write(line)
            self._lines.append((place, len(line)))
        file.flush()
        fresh.replace(self.path / RESULTS_NAME)
        if self._output is not None:
            for _, line in kept:
                self._output.write(line)
        return file

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"The run cannot be written to {self.path}; what was written stays"
            raise disk_error(self.path, what, error) from error


def line_of(result: Result) -> bytes:
    """Return a result as its line of results.jsonl: one line to every reader, and always valid UTF-8."""
    fields = asdict(result)
    if not result.reasoning:
        del fields["reasoning"]
    text = json.dumps(fields, ensure_ascii=False)
    for separator, escaped in _SEPARATORS.items():
        text = text.replace(separator, escaped)
    return _utf8(text + "\n")


def _utf8(json_text: str) -> bytes:
    # A file name that is no UTF-8 comes as lone surrogates: written as JSON's own escapes.
    return json_text.encode("utf-8", "backslashreplace")
