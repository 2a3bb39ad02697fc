"""One execution of pass two on disk: ``runs/<id>/run.json`` and ``results.jsonl``.

A line is written as each answer finishes, and ``run.json`` again at the end, so an interrupted run
keeps what it had. Owns the files and their fields; answers come from ``infer.batching``.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from cache.errors import InputError, StoreError
from cache.home import Home
from results.answers import Description
from results.lock import RunLock


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request cost."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """One line of results.jsonl: what one prompt said of one frame. ``frame`` is zero-based."""

    recording: str
    frame: int
    timestamp_s: float
    source: str
    key: str
    prompt_id: str
    prompt: str
    text: str
    finish_reason: str
    usage: Usage
    parsed: Description | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run came to; ``seconds`` is its wall time with loading.

    Of the results, ``num_known`` were answered by earlier runs and ``num_repeated`` had the frame and prompt
    of another result of this run: neither were decoded.
    """

    num_results: int = 0
    num_errors: int = 0
    num_parsed: int = 0
    num_known: int = 0
    num_repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """run.json: what was run, with what, when, and how it ended.

    ``prompt_names`` are those of an experiment, in the order of ``prompts``. ``plan_id`` is the digest of all
    that was asked: two finished runs of one plan have the same answers.
    """

    id: str
    recording: str
    encoder_id: str
    model: str
    model_path: str
    revision: str
    prompts: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    max_num_seqs: int
    prefill_batch_size: int
    prefill_step_size: int
    compute_dtype: str
    versions: dict[str, str]
    started_at: str
    ended_at: str | None
    status: str
    totals: Totals
    name: str = ""
    prompt_names: tuple[str, ...] = ()
    plan_id: str = ""


def new_run_id() -> str:
    """Return an id that sorts by time: date, time, four random hex digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunWriter:
    """Writes a run as it goes on; use as a context manager."""

    def __init__(self, home: Home, info: RunInfo, output: Path | None) -> None:
        """Make the run's folder and open its files.

        Raises:
            InputError: ``output`` cannot be written.
            StoreError: the home cannot.
        """
        self.path = home.runs / info.id
        self._output = _users_own(output) if output is not None else None
        self._lines: list[IO[str]] = [self._output] if self._output is not None else []
        self._num_written = 0
        with self._refusals():
            home.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700)
            self._lock = RunLock(self.path)
            self._lines.append(_private(self.path / "results.jsonl"))
        self.write_info(info)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for file in self._lines:
            with suppress(OSError):  # what could not be written was told when it was written
                file.close()
        self._lock.__exit__()

    def write(self, result: Result) -> None:
        """Append a line, at once.

        Raises:
            StoreError: the disk is full or refuses.
        """
        line = json.dumps(asdict(result), ensure_ascii=False) + "\n"
        with self._refusals():
            if self._num_written == 0 and self._output is not None:
                self._output.truncate(0)  # only now: a run that fails before must not cost earlier results
            for file in self._lines:
                file.write(line)
                file.flush()
        self._num_written += 1

    def write_info(self, info: RunInfo) -> None:
        """Replace run.json as a whole.

        Raises:
            StoreError: the disk is full or refuses.
        """
        fresh = self.path / ".run.json.new"
        with self._refusals():
            with _private(fresh) as file:
                file.write(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n")
            fresh.replace(self.path / "run.json")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"The run cannot be written to {self.path} ({error.strerror}); what was written stays: "
                "free space there, or set SEEONCE_HOME to another disk."
            ) from error


def _private(path: Path) -> IO[str]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _users_own(path: Path) -> IO[str]:
    try:
        return path.expanduser().open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--output {path} cannot be written ({error.strerror}): give another file."
        ) from error
