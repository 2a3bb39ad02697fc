"""``seeonce doctor``: check the installation and say how to fix it."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import typer

from cache.base.errors import EXIT_ERROR, SeeonceError
from cache.base.home import Home
from cache.base.text import counted, megabytes
from cache.stats import store_stats
from checkpoint.backend import import_mlx, installed_version, memory_bytes
from checkpoint.blas import blas_in_front, computes_on_cpu
from checkpoint.folder import DEMO, default_model, find_checkpoint
from infer.canary import RECURRENT, combination, remembered
from seeonce.commands.arguments import AsJson

_OK, _NOTE, _BROKEN = "ok", "note", "broken"
_PACKAGES = ("seeonce", "mlx", "mlx-vlm", "transformers", "numpy", "zarr", "av")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do. ``state`` is ok, note or broken."""

    what: str
    state: str
    words: str
    remedy: str = ""


def doctor_command(
    as_json: AsJson = False,
) -> None:
    """Check the installation and say how to fix it.

    What it prints belongs into a bug report; it names no private paths. Exit 1 when something is broken.

    Example: seeonce doctor
    """
    found = list(findings())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            remedy = f": {finding.remedy}" if finding.remedy else ""
            mark = "" if finding.state == _OK else f"{finding.state}: "
            typer.echo(f"{finding.what:<9} {mark}{finding.words}{remedy}")
    raise typer.Exit(EXIT_ERROR if any(finding.state == _BROKEN for finding in found) else 0)


def findings() -> Iterator[Finding]:
    """Look at versions, device, memory, store, models and the canary's verdict; imports ``mlx.core``."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if not version]
    yield Finding(
        "versions",
        _BROKEN if missing else _OK,
        ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        + f", Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"install {', '.join(missing)}, or seeonce again" if missing else "",
    )
    yield _device()
    if sys.platform == "linux" and computes_on_cpu():
        yield _product()
        yield _compiler()
    yield _memory()
    try:
        home = Home.locate()
    except SeeonceError as error:
        yield Finding("store", _BROKEN, _private(str(error)))
        yield _model()
        return
    yield from _store(home)
    yield _model()
    yield _canary(home)


def _device() -> Finding:
    try:
        mx = import_mlx()
        words = str(mx.default_device())
        if hasattr(mx, "device_info"):
            words = f"{words}, {mx.device_info().get('device_name', '')}".rstrip(", ")
    except SeeonceError as error:
        return Finding("device", _BROKEN, "MLX does not load", " ".join(_private(str(error)).split()))
    return Finding("device", _OK, words)


def _product() -> Finding:
    name = blas_in_front()
    if name:
        return Finding("BLAS", _OK, name)
    words = "that of MLX's wheel, 10 to 30 times slower than OpenBLAS"
    return Finding(
        "BLAS", _NOTE, words, "install g++, or OpenBLAS (Debian: apt install libopenblas0-pthread)"
    )


def _compiler() -> Finding:
    if shutil.which("g++"):
        return Finding("compiler", _OK, "g++")
    return Finding("compiler", _BROKEN, "no g++, with which MLX compiles its kernels", "install g++")


def _memory() -> Finding:
    try:
        total = memory_bytes()
    except (OSError, ValueError):
        return Finding("memory", _NOTE, "unknown")
    remedy = "" if total >= 8e9 else "take a 2B checkpoint, and --kv-memory 1GB"
    return Finding("memory", _OK if not remedy else _NOTE, megabytes(total), remedy)


def _store(home: Home) -> Iterator[Finding]:
    place = _private(str(home.path))
    if not home.store.is_dir():
        yield Finding("store", _OK, f"none yet, would be in {place}")
        return
    try:
        stats = store_stats(home)
    except SeeonceError as error:
        yield Finding("store", _BROKEN, _private(str(error)))
        return
    words = (
        f"{place}, {counted(stats.num_entries, 'entry')} of {counted(stats.num_recordings, 'recording')}, "
        f"{megabytes(stats.num_bytes)}, {megabytes(stats.free_bytes)} free"
    )
    problems = [f"{stats.num_quarantined} damaged"] if stats.num_quarantined else []
    problems += [f"{stats.num_unreadable} unreadable"] if stats.num_unreadable else []
    if problems:
        yield Finding("store", _NOTE, f"{words}, {', '.join(problems)}", "run seeonce store repair")
    else:
        yield Finding("store", _OK, words)
    for warning in home.warnings():
        yield Finding("store", _NOTE, _private(warning))


def _model() -> Finding:
    chosen = default_model("")
    is_folder = chosen == DEMO or Path(chosen).expanduser().is_dir()
    name = Path(chosen).name if is_folder else _private(chosen)
    if is_folder:
        try:
            find_checkpoint(chosen, lambda _: None)
        except SeeonceError as error:
            return Finding("model", _BROKEN, _private(str(error)))
        return Finding("model", _OK, f"{name}, a folder")
    with suppress(Exception):  # whatever keeps a hub's cache from being read, the model is not in it
        from huggingface_hub import snapshot_download

        repo, _, revision = chosen.partition("@")
        snapshot_download(repo, revision=revision or None, local_files_only=True)
        return Finding("model", _OK, f"{name}, downloaded")
    return Finding("model", _NOTE, f"{name} is not here", "the first encode downloads it, or give --model")


def _canary(home: Home) -> Finding:
    here = combination()
    found = [remembered(home, replace(here, layers=layers)) for layers in ("", RECURRENT)]
    verdicts = {verdict.value for verdict in found if verdict is not None}
    if not verdicts:
        return Finding("canary", _OK, "not run yet with these versions; the first describe runs it")
    if verdicts == {"batched"}:
        return Finding("canary", _OK, "batched answers are those of live encoding")
    return Finding(
        "canary", _NOTE, "batched answers are wrong with these versions; prompts are prefilled one by one"
    )


def _private(text: str) -> str:
    """Leave out where the user's folders lie: a report is for strangers."""
    chosen = os.environ.get("SEEONCE_HOME", "").strip()
    text = text.replace(chosen, "SEEONCE_HOME") if len(chosen) > 1 else text
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    return text.replace(home, "~") if len(home) > 1 else text
