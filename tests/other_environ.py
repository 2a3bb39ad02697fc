"""Recordings as they are found under other variables of the environment than those of the tests."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

from sources import recordings
from sources.recording import FrameChoice, Recording, RecordingListing

_NAMES = ("SEEONCE_RECORDINGS", "CAP_RECORDINGS", "ESCRIBANO_DB")


@contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if name not in _NAMES}
    with patch.dict(os.environ, kept | dict(environ), clear=True):
        yield


def list_recordings(
    environ: Mapping[str, str], say: Callable[[str], None] | None = None
) -> list[RecordingListing]:
    with _environment(environ):
        return recordings.list_recordings(*([say] if say else []))


def latest_recording(environ: Mapping[str, str]) -> RecordingListing | None:
    with _environment(environ):
        return recordings.latest_recording()


def open_recording(
    selector: str, choice: FrameChoice | None = None, environ: Mapping[str, str] | None = None
) -> Recording:
    with _environment(environ or {}):
        return recordings.open_recording(selector, choice)
