"""A fast matrix product for MLX's CPU backend, whose own BLAS is 10 to 30 times slower than OpenBLAS."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_SYSTEM = "libopenblas.so.0"
_LIBRARIES = ("libopenblas", "libmkl_rt", "libblis", "libflexiblas", "libatlas")
_CUDA_DISTRIBUTIONS = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")
_SHIM_SOURCE = Path(__file__).with_name("openblas_shim.cpp")
_SHIM = "seeonce-openblas-"
_COMPILE_TIMEOUT_S = 60
_SPIN = "16"  # OpenBLAS's threads wait for more work on their cores for 2 ** 16 ticks, 0.03 ms, not 2 ** 26
_warned: list[str] = []


def computes_on_cpu() -> bool:
    """Tell whether MLX runs on the CPU here, without importing it: Linux without a CUDA build."""
    if sys.platform == "darwin":
        return False
    return not any(_is_installed(name) for name in _CUDA_DISTRIBUTIONS)


def put_openblas_in_front() -> None:
    """Load an OpenBLAS, so that MLX, when it is imported after this, multiplies float32 with it.

    It is the system's, else the one in numpy's wheel behind a shim that g++ compiles once. Symbols are
    looked up in what was loaded globally first, as with LD_PRELOAD; a BLAS that was preloaded stays in front.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules or not computes_on_cpu():
        return
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPIN)
    with suppress(OSError):
        ctypes.CDLL(_SYSTEM, mode=ctypes.RTLD_GLOBAL)
        return
    problem = _use_numpys()
    if problem and not _warned:
        _warned.append(problem)
        logging.getLogger(__name__).warning(
            "matrix products are 10 to 30 times slower than they could be (%s): install g++, or OpenBLAS "
            "(on Debian: apt install libopenblas0-pthread)", problem,
        )  # fmt: skip


def blas_in_front() -> str:
    """Return the name of the library that was loaded before MLX's own, "" for none: each rounds otherwise."""
    if not computes_on_cpu():
        return ""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    paths = {Path(line.split(maxsplit=5)[-1].strip()) for line in maps if ".so" in line}
    found = {
        path.name for path in paths if path.name.startswith(_LIBRARIES) and path.parent.suffix != ".libs"
    }
    if any(path.name.startswith(_SHIM) for path in paths):
        found.add(f"numpy's {_config(_numpys_openblas())}")
    return ", ".join(sorted(found))


def num_threads() -> int | None:
    """Return how many threads the OpenBLAS in front multiplies with, which decides how sums are rounded.

    None where there is none, or where it does not say.
    """
    library, name = None, "openblas_get_num_threads"
    if "numpy's" in (found := blas_in_front()):
        library, name = str(_numpys_openblas()), "scipy_openblas_get_num_threads64_"
    if found:
        with suppress(OSError, AttributeError):
            return int(ctypes.CDLL(library)[name]())
    return None


def _use_numpys() -> str:
    """Put numpy's OpenBLAS in front; return why that cannot be done, "" if it was."""
    path = _numpys_openblas()
    if path is None:
        return "numpy has no OpenBLAS of its own"
    shim = _shim()
    if isinstance(shim, str):
        return shim
    try:
        product = ctypes.CDLL(str(path)).scipy_cblas_sgemm64_
        loaded = ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
        loaded.seeonce_use_product(ctypes.cast(product, ctypes.c_void_p))
    except (OSError, AttributeError) as error:
        return " ".join(str(error).split())
    return ""


def _numpys_openblas() -> Path | None:
    """Return the OpenBLAS in numpy's wheel, without importing numpy."""
    spec = find_spec("numpy")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parents[1].glob("numpy.libs/libscipy_openblas64_*.so*"), None)


def _config(library: Path | None) -> str:
    """Return what an OpenBLAS says of itself: "OpenBLAS 0.3.31 SkylakeX"."""
    try:
        config = ctypes.CDLL(str(library)).scipy_openblas_get_config64_
    except (OSError, AttributeError):
        return "OpenBLAS"
    config.restype = ctypes.c_char_p
    words = str(config().decode("ascii", "replace")).split()
    return " ".join([*words[:2], *(word for word in words[-2:-1] if "=" not in word)])


def _shim() -> Path | str:
    """Return the compiled shim, compiled now if it is not there; or why there is none."""
    source = _SHIM_SOURCE.read_bytes()
    name = f"{_SHIM}{platform.machine()}-{hashlib.sha256(source).hexdigest()[:12]}.so"
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    compiler = shutil.which("g++")
    if compiler is None:
        return "there is no g++"
    problem = "no folder to compile into"
    for folder in _folders():
        fresh = folder / f".{name}.{os.getpid()}"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(fresh), str(_SHIM_SOURCE)]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)  # noqa: S603
            fresh.replace(folder / name)
        except (OSError, subprocess.SubprocessError) as error:
            problem = f"{compiler}: {' '.join(str(error).split())}"
        else:
            return folder / name
        finally:
            with suppress(OSError):
                fresh.unlink()
    return problem


def _folders() -> Iterator[Path]:
    """Yield where the shim may lie: beside its source, or where only the user can write."""
    yield _SHIM_SOURCE.parent
    with suppress(RuntimeError):  # nobody's home
        yield Path.home() / ".cache" / "seeonce"


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
