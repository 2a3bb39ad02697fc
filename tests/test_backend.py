"""What multiplies here: the system's OpenBLAS, else numpy's, without anybody having to preload it."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings a fast product")
_HIDDEN = "from checkpoint import blas; blas._SYSTEM = 'none.so'; blas.put_openblas_in_front(); "
_PRODUCT = (
    "import mlx.core as mx; import numpy as np; "
    "a = mx.random.normal((64, 32)); b = mx.random.normal((32, 48)); "
    "print(bool(np.allclose(np.array(a @ b), np.array(a) @ np.array(b), atol=1e-5)), "
    "bool(np.allclose(np.array(b.T @ a.T), np.array(a @ b).T, atol=1e-5)))"
)
_CHIP = "from checkpoint.backend import provenance; print(provenance().chip)"


def _has_openblas() -> bool:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        return False
    return sys.platform == "linux"


needs_openblas = pytest.mark.skipif(not _has_openblas(), reason="no OpenBLAS here")


def _no_preload() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_no_preload())
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_openblas
def test_openblas_multiplies_without_being_preloaded() -> None:
    assert "libopenblas" in _run(f"import seeonce; {_CHIP}")


@needs_openblas
def test_after_mlx_openblas_would_not_compute_and_is_not_named() -> None:
    assert "libopenblas" not in _run(f"import mlx.core, seeonce; {_CHIP}")


@on_linux
def test_without_a_systems_openblas_numpys_multiplies_and_is_named() -> None:
    assert "numpy's OpenBLAS" in _run(_HIDDEN + _CHIP)
    assert _run(_HIDDEN + _PRODUCT).split() == ["True", "True"]


@on_linux
def test_provenance_says_with_how_many_threads_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert _run(_HIDDEN + _CHIP).strip().endswith(", 1 thread")


@on_linux
def test_threads_that_have_multiplied_leave_the_cores_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    waits = (
        "import time, mlx.core as mx\n"
        "a, spent = mx.random.normal((512, 512)), 0\n"
        "for _ in range(5):\n"
        "    mx.eval(a @ a)\n"
        "    began = time.process_time()\n"
        "    time.sleep(0.04)\n"
        "    spent += time.process_time() - began\n"
        "print(spent)"
    )
    assert float(_run(_HIDDEN + waits)) < 0.015


@on_linux
def test_without_a_compiler_it_is_slow_and_says_so_once(tmp_path: Path) -> None:
    program = (
        f"import os, pathlib; os.environ['PATH'] = ''; os.environ['HOME'] = {str(tmp_path)!r}; "
        "from checkpoint import blas; blas._SYSTEM = 'none.so'; "
        f"blas._folders = lambda: [pathlib.Path({str(tmp_path)!r})]; "
        "[blas.put_openblas_in_front() for _ in range(3)]; "
    )
    done = subprocess.run(
        [sys.executable, "-c", program + _PRODUCT], capture_output=True, text=True, env=_no_preload()
    )
    assert done.stdout.split() == ["True", "True"]
    assert done.stderr.count("install g++, or OpenBLAS") == 1


@on_linux
def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = (
        "import pathlib; from checkpoint import blas; blas._SYSTEM = 'none.so'; "
        f"blas._folders = lambda: [pathlib.Path({str(tmp_path / 'file' / 'below')!r}), "
        f"pathlib.Path({str(tmp_path / 'home')!r})]; blas.put_openblas_in_front(); "
    )
    assert "numpy's OpenBLAS" in _run(program + _CHIP)
    assert [path.suffix for path in (tmp_path / "home").iterdir()] == [".so"]
