"""What computes here: OpenBLAS, where it is installed, without anybody having to preload it."""

import ctypes
import os
import subprocess
import sys

import pytest

_CHIP = "from checkpoint.backend import provenance; print(provenance().chip)"


def _has_openblas() -> bool:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        return False
    return sys.platform == "linux"


needs_openblas = pytest.mark.skipif(not _has_openblas(), reason="no OpenBLAS here")


def _run(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_openblas
def test_openblas_multiplies_without_being_preloaded() -> None:
    assert "libopenblas" in _run(f"import seeonce; {_CHIP}")


@needs_openblas
def test_after_mlx_openblas_would_not_compute_and_is_not_named() -> None:
    assert "libopenblas" not in _run(f"import mlx.core, seeonce; {_CHIP}")
