"""The MLX that runs here: whether there is one, what it computes in, and what it calls itself.

Importing this module imports no MLX; its functions do where they say so.
"""

import os
import platform
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING

from cache.base.errors import CheckpointError
from cache.base.text import counted
from checkpoint.blas import blas_in_front, computes_on_cpu, num_threads

if TYPE_CHECKING:
    from cache.entry import Provenance

DTYPES = ("float32", "bfloat16", "float16")


def import_mlx() -> ModuleType:
    """Import and return ``mlx.core``.

    Raises:
        CheckpointError: mlx is installed without a backend for this machine.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        extra = "cuda" if os.path.exists("/proc/driver/nvidia/version") else "cpu"  # noqa: PTH110
        raise CheckpointError(
            f"MLX has no backend here ({error}): install one with pip install 'seeonce[{extra}]' "
            f"or pip install 'mlx[{'cuda13' if extra == 'cuda' else 'cpu'}]'."
        ) from error
    return mx


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
    chip = str(info.get("device_name") or platform.processor() or platform.machine())
    return Provenance(
        mlx=installed_version("mlx"),
        mlx_vlm=installed_version("mlx-vlm"),
        seeonce=installed_version("seeonce"),
        device=str(device),
        chip=", ".join(filter(None, (chip, *_product()))),
        host_os=f"{platform.system()} {platform.release()}",
    )


@cache
def _product() -> tuple[str, str]:
    """Return what multiplies, and with how many threads: it stays so once MLX is imported."""
    return blas_in_front(), "" if (number := num_threads()) is None else counted(number, "thread")


def memory_bytes() -> int:
    """Return how much memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
