"""Whether batching is right here: tried once for each combination of mlx, mlx-vlm, device and engine.

A combination that was seen costs one small file to read, no MLX.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from cache.base.errors import CheckpointError, SeeonceError
from cache.base.home import Home
from checkpoint.backend import installed_version
from infer.limits import BatchLimits

ENGINE_EPOCH = 4
"""Raised when our own prefill, sharing or decoding changes: then every combination is new."""

KNOWN_TO_WORK = "mlx 0.32.4 with mlx-vlm 0.7.10"
_FILE = "canary.json"
_BACKENDS = ("mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-13", "mlx-cuda-12", "mlx-vlm")
_UNCHUNKED = 2**31 - 1
_COPIES, _IN_PLACE = "copies", "in_place"

RECURRENT = "gated delta nets"
"""The layers of another kind than attention."""


class Verdict(StrEnum):
    """How pass two may run: as asked, or prefilling one prompt after the other, whole and unshared."""

    batched = "batched"
    one_by_one = "one_by_one"


@dataclass(frozen=True, slots=True)
class Combination:
    """What computes here, by name and version, and layers of another kind than attention, by name."""

    versions: tuple[str, ...]
    device: str
    dtype: str
    engine_epoch: int = ENGINE_EPOCH
    layers: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.versions)} on {self.device}"


Trial = Callable[[BatchLimits], str | None]
"""Answers a few questions batched and live under the given limits; says what differs, ``None`` if nothing."""

BATCHED_TRIAL = BatchLimits(max_num_seqs=8, prefill_batch_size=4, prefill_step_size=64)


def combination() -> Combination:
    """Return what computes here, without importing it."""
    versions = tuple(f"{name} {version}" for name in _BACKENDS if (version := installed_version(name)))
    return Combination(versions, _device(), os.environ.get("SEEONCE_DTYPE", ""))


def one_by_one(limits: BatchLimits) -> BatchLimits:
    """Return limits under which each prompt is prefilled alone, whole and from its beginning."""
    return replace(limits, prefill_batch_size=1, prefill_step_size=_UNCHUNKED, share_prefixes=False)


def sound_limits(
    home: Home, limits: BatchLimits, trial: Trial, say: Callable[[str], None], layers: str = ""
) -> BatchLimits:
    """Return ``limits``, or slower ones under which answers are right here; try it out where nobody has.

    Raises:
        CheckpointError: answers are wrong either way.
    """
    if not home.path.is_dir():
        return limits  # nothing is encoded, and nowhere could be noted what was found
    here = replace(combination(), layers=layers)
    verdict = remembered(home, here)
    if verdict is None:
        say(f"First run with {here}: a short trial against live encoding.")
        verdict = _try_out(here, trial, say)
        remember(home, here, verdict)
    return limits if verdict is Verdict.batched else one_by_one(limits)


def _try_out(here: Combination, trial: Trial, say: Callable[[str], None]) -> Verdict:
    problem = _tried(trial, BATCHED_TRIAL)
    if problem is None:
        return Verdict.batched
    say(f"Batched answers are not those of live encoding ({problem}): prompts are prefilled one by one.")
    worse = _tried(trial, one_by_one(BATCHED_TRIAL))
    if worse is None:
        return Verdict.one_by_one
    raise CheckpointError(
        f"Answers are wrong with {here}, batched ({problem}) and one by one ({worse}): install "
        f"{KNOWN_TO_WORK}, which work."
    )


def _tried(trial: Trial, limits: BatchLimits) -> str | None:
    try:
        return trial(limits)
    except SeeonceError:
        raise
    except Exception as error:  # another version may have another interface: that is a failed trial too
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def copies_prefixes(home: Home, shape: str, copies_are_faster: Callable[[], bool]) -> bool:
    """Tell whether rows should have copies of a shared prefix here, instead of reading it in place.

    That is timed once for each combination and ``shape`` of attention, and noted beside the verdicts.
    """
    if not home.path.is_dir():
        return False
    words = f"{_words(combination())}, attention {shape}"
    verdict = _verdict(home, words)
    if verdict not in (_COPIES, _IN_PLACE):
        verdict = _COPIES if copies_are_faster() else _IN_PLACE
        _note(home, words, verdict)
    return verdict == _COPIES


def remembered(home: Home, here: Combination) -> Verdict | None:
    """Return the verdict of an earlier trial; ``None`` when there was none, or the file is not readable."""
    with suppress(ValueError):
        return Verdict(_verdict(home, _words(here)))
    return None


def remember(home: Home, here: Combination, verdict: Verdict) -> None:
    """Keep a verdict. A home that cannot be written costs another trial, no more."""
    _note(home, _words(here), verdict.value)


def _verdict(home: Home, words: str) -> str:
    found = (line.get("verdict", "") for line in _read(home.path / _FILE) if line.get("combination") == words)
    return next(found, "")


def _note(home: Home, words: str, verdict: str) -> None:
    known = [line for line in _read(home.path / _FILE) if line.get("combination") != words]
    text = json.dumps([*known, {"combination": words, "verdict": verdict}], indent=2) + "\n"
    with suppress(OSError):
        fresh = home.path / f".{_FILE}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o600)
        fresh.replace(home.path / _FILE)


def _words(here: Combination) -> str:
    words = f"{here}, {here.dtype or 'default dtype'}, engine {here.engine_epoch}"
    return f"{words}, {here.layers}" if here.layers else words


def _read(path: Path) -> list[dict[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []


def _device() -> str:
    """Name the chip and the GPU, from what the system says of itself."""
    chip = platform.processor() or platform.machine()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            chip = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line.partition(":")[2].strip() for gpu in gpus for line in _lines(gpu) if line[:6] == "Model:"]
    return ", ".join([f"{platform.system()} {platform.machine()} {chip}", *models])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
