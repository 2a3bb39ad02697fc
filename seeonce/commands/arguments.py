"""Arguments that several commands take, and what they make of them."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import seeonce.demo
from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.text import parse_size, user_path
from cache.bucket import BucketStore
from cache.prefixes import prefix_cache_bytes
from checkpoint.folder import DEMO
from seeonce.runs.answer_cache import AnswerCache
from seeonce.runs.compare import FrameRef
from seeonce.runs.describe import Session
from seeonce.runs.run import Run
from seeonce.runs.score import Expected, check_truth, read_truth, truth_for
from seeonce.runs.sheet import Sheet, make_sheet
from seeonce.runs.writer import opened

if TYPE_CHECKING:
    from seeonce.fleet import Fleet


class Engines(StrEnum):
    """What carries work to many workers."""

    ray = "ray"


RUN = "latest, the id of a run, the start of one, or its name; RUN:2 is its second prompt."
TRUTH = (
    "A CSV file with a column frame (an index or file name) and some of text, description, activity, apps, "
    "topics; prompt and recording say what a row is about. By default truth.csv beside the pictures."
)
_DEMO_FOLDER = Path(seeonce.demo.__file__).parent / "recording"
PREFIX_CACHE = (
    "Keep what prompts begin with, up to the last image, on disk for later prompts, at most so much, such as "
    "60GB; 0 for none. SEEONCE_PREFIX_CACHE, else none."
)
PrefixCacheSize = Annotated[str | None, typer.Option("--prefix-cache", metavar="SIZE", help=PREFIX_CACHE)]
MaxNumSeqs = Annotated[
    str, typer.Option(metavar="N|auto", help="Answers decoded at once, at most; auto: while more are faster.")
]
FromBucket = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="URL", help="Recordings of a bucket, s3://bucket/prefix, not of this store."
    ),
]
ByEngine = Annotated[
    Engines | None,
    typer.Option(
        "--engine", help="Over many workers; RAY_ADDRESS names the cluster, else one on this machine."
    ),
]
NumWorkers = Annotated[int | None, typer.Option("--workers", help="How many; one a GPU, or one.")]
GpusPerWorker = Annotated[float, typer.Option("--gpus-per-worker", help="GPUs of each, such as 1 or 0.5.")]
KVMemorySize = Annotated[
    str | None, typer.Option(help="What KV caches may take, such as 8GB; by default a share of the device.")
]
ServedModelName = Annotated[
    str | None, typer.Option(help="A folder or hub id; SEEONCE_MODEL, else what encoded last.")
]
AllowedFiles = Annotated[
    list[Path] | None, typer.Option(metavar="FOLDER", help="Take file: pictures from here; repeatable.")
]
AllowRemoteImages = Annotated[
    bool, typer.Option("--allow-remote-images", help="Fetch http(s) pictures from public addresses.")
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Keep nothing of pictures that are new.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def fleet_of(engine: Engines | None, num_workers: int | None, gpus_per_worker: float) -> "Fleet | None":
    """Return the workers that are asked for. Raises ``InputError`` when they have no engine."""
    if engine is None and (num_workers is not None or gpus_per_worker):
        raise InputError("--workers and --gpus-per-worker are for --engine ray")
    if engine is None:
        return None
    from seeonce.fleet import Fleet

    return Fleet(num_workers, gpus_per_worker)


@contextmanager
def opened_session(
    output: Path | None,
    prefix_cache: str | None,
    source: str | None,
    engine: Engines | None,
    num_workers: int | None,
    gpus_per_worker: float,
) -> Iterator[Session]:
    """Open what the runs of one command share, by the options that say so.

    Raises:
        InputError: an option is wrong, or workers have no bucket to read from.
    """
    home, num_bytes = Home.locate(), prefix_cache_bytes(prefix_cache)
    bucket = None if source is None else BucketStore.open(source)
    elsewhere = None
    if (fleet := fleet_of(engine, num_workers, gpus_per_worker)) is not None:
        if bucket is None:
            raise InputError(
                "--engine ray answers from a bucket that all workers reach: name it, as in --from URL"
            )
        from seeonce.fleet import answer_by_ray

        elsewhere = answer_by_ray(fleet, bucket)
    with AnswerCache(home) as known, opened(output) as file:
        yield Session(home, known, file, num_bytes, bucket, elsewhere)


def sheet_of(runs: list[Run]) -> Sheet:
    """Lay runs side by side. Raises ``InputError`` when they have no answers."""
    sheet = make_sheet(runs)
    if not sheet.rows:
        raise InputError(f"{runs[0].info.id} has no answers yet: see seeonce runs.")
    return sheet


def truths_of(sheet: Sheet, truth: Path | None) -> list[Mapping[FrameRef, Expected]]:
    """Return what is known of the frames of each column: by a file, or by truth.csv beside the pictures.

    Raises:
        InputError: the file cannot be read, or does not say which prompt or recording it is about.
    """
    if truth is not None:
        rows = read_truth(truth)
        check_truth(truth, rows, sheet)
        return [truth_for(rows, column, sheet.rows) for column in sheet.columns]
    found: list[dict[FrameRef, Expected]] = [{} for _ in sheet.columns]
    for recording, own in groupby(sheet.rows, lambda row: row.recording):
        frames = list(own)
        beside = truth_beside(recording, frames[0].source)
        if beside is None:
            continue
        try:
            rows = read_truth(beside)
            check_truth(beside, rows, replace(sheet, rows=tuple(frames)))
        except InputError as error:  # it was found, not asked for: it may be something else
            warn(f"{error} The truth is not looked at.")
            continue
        for column, known in zip(sheet.columns, found, strict=True):
            known.update(truth_for(rows, column, frames))
    return list(found)


def truth_beside(recording: str, source: str) -> Path | None:
    """Return the truth.csv beside a recording's pictures; the demo's is that of this installation."""
    folder = _DEMO_FOLDER if recording == DEMO else Path(source).parent
    path = folder / "truth.csv"
    return path if os.path.isfile(path) else None  # noqa: PTH113 (never raises)


def terminal_width() -> int:
    """Return how many columns the terminal has; 110 without a terminal."""
    return shutil.get_terminal_size((110, 24)).columns


def warn(line: str) -> None:
    """Print a warning on standard error."""
    typer.echo(f"warning: {line}", err=True)


def kv_memory_bytes(text: str | None) -> int | None:
    """Read ``--kv-memory``; ``None`` leaves it to the device. Raises ``InputError`` when it is no size."""
    return None if text is None else parse_size(text, "--kv-memory")


def allowed_folder(path: Path) -> Path:
    """Return a folder that files may be read under. Raises ``InputError``."""
    folder = user_path(path)
    if not folder.is_dir():
        raise InputError(f"--allow-files {path}: no such folder.")
    return folder.resolve()


def num_in_flight(text: str) -> int | None:
    """Read ``--max-num-seqs``; ``None`` is auto. Raises ``InputError`` when it is neither."""
    if text == "auto":
        return None
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise InputError(f"--max-num-seqs is {text!r}; expected a whole number, or auto.")
    return int(text)
