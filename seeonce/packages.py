"""Our packages whose names others may have, too: which lies in the way, and how commands get past it."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGES = ("cache", "checkpoint", "infer", "precompute", "sources")
_ROOT = Path(__file__).resolve().parents[1]


def shadowed() -> str | None:
    """Say in one line what others' code is found where one of our packages is needed; ``None`` if nothing."""
    for name in PACKAGES:
        found = _origin(name)
        if found != _file(name):
            return (
                f"'import {name}' finds {found or 'nothing'}, where seeonce needs its own in {_ROOT}: "
                "rename that file or folder, or start Python elsewhere."
            )
    return None


def use_own_packages() -> None:
    """Import our packages from beside this one, whatever else has their names; for a process of our own."""
    for name in PACKAGES:
        if name in sys.modules and _origin(name) == _file(name):
            continue
        for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[loaded]
        file = _file(name)
        spec = spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} cannot be imported: reinstall seeonce.")
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)


def _file(name: str) -> Path:
    return _ROOT / name / "__init__.py"


def _origin(name: str) -> Path | None:
    """Return the file that ``import name`` runs, or the folder of a package without one."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return None
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places else None
