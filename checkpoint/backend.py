"""The MLX that runs here: whether there is one, what it computes in, and what it calls itself.

Importing this module imports no MLX; its functions do where they say so.
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING

from cache.base.errors import CheckpointError

if TYPE_CHECKING:
    from cache.entry import Provenance

DTYPES = ("float32", "bfloat16", "float16")
_BLAS_LIBRARIES = ("libopenblas", "libmkl_rt", "libblis", "libflexiblas", "libatlas")
_OPENBLAS = "libopenblas.so.0"
_CUDA_DISTRIBUTIONS = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")


def put_openblas_in_front() -> None:
    """Load the system's OpenBLAS, where there is one, so that MLX's CPU backend multiplies with it.

    The BLAS in MLX's wheel is 30 times slower. Symbols are looked up in what was loaded globally first, so
    this does what LD_PRELOAD does, and like it must come before MLX is imported: afterwards nothing is done.
    A preloaded BLAS stays in front.
    """
    if sys.platform == "linux" and "mlx.core" not in sys.modules and computes_on_cpu():
        with suppress(OSError):
            ctypes.CDLL(_OPENBLAS, mode=ctypes.RTLD_GLOBAL)


def import_mlx() -> ModuleType:
    """Import and return ``mlx.core``.

    Raises:
        CheckpointError: mlx is installed without a backend for this machine.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        extra = "cuda" if _has_nvidia() else "cpu"
        raise CheckpointError(
            f"MLX has no backend here ({error}): install one with pip install 'seeonce[{extra}]' "
            f"or pip install 'mlx[{'cuda13' if extra == 'cuda' else 'cpu'}]'."
        ) from error
    return mx


def computes_on_cpu() -> bool:
    """Tell whether MLX runs on the CPU here, without importing it: Linux without a CUDA build."""
    if sys.platform == "darwin":
        return False
    return not any(installed_version(name) for name in _CUDA_DISTRIBUTIONS)


def compute_dtype(checkpoint_dtype: str) -> str:
    """Return the dtype to compute in: SEEONCE_DTYPE, else float32 on a CPU, else the checkpoint's.

    bfloat16 and float16 products run 35 times slower than float32 on MLX's CPU backend.

    Raises:
        CheckpointError: SEEONCE_DTYPE names no such dtype.
    """
    wanted = os.environ.get("SEEONCE_DTYPE") or ("float32" if computes_on_cpu() else checkpoint_dtype)
    if wanted not in DTYPES:
        raise CheckpointError(f"SEEONCE_DTYPE is {wanted!r}; expected one of {', '.join(DTYPES)}.")
    return wanted


def provenance() -> "Provenance":
    """Return the versions and the device that compute here. Imports ``mlx.core``."""
    from cache.entry import Provenance

    mx = import_mlx()
    device = mx.default_device()
    info = mx.device_info() if hasattr(mx, "device_info") else {}
    return Provenance(
        mlx=installed_version("mlx"),
        mlx_vlm=installed_version("mlx-vlm"),
        seeonce=installed_version("seeonce"),
        device=str(device),
        chip=str(info.get("device_name") or platform.processor() or platform.machine()) + _blas_in_front(),
        host_os=f"{platform.system()} {platform.release()}",
    )


def _blas_in_front() -> str:
    """Name a matrix library that was loaded before MLX's own: it rounds otherwise."""
    if not computes_on_cpu():
        return ""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line}
    except OSError:
        return ""
    found = {
        os.path.basename(path)  # noqa: PTH119
        for path in paths
        if os.path.basename(path).startswith(_BLAS_LIBRARIES)  # noqa: PTH119
        and not os.path.dirname(path).endswith(".libs")  # noqa: PTH120 - a wheel's own
    }
    return "".join(f", {name}" for name in sorted(found))


def installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _has_nvidia() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")  # noqa: PTH110
