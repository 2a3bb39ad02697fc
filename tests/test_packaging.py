"""What the product promises about its packages: who imports whom, what ships, what a command loads."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "cache",
    "checkpoint",
    "infer",
    "precompute",
    "sources",
    "seeonce",
)
SLOW_TO_IMPORT = ("mlx", "mlx_vlm", "transformers", "torch")

# Package -> the packages of ours that it may import.
ALLOWED = {
    "cache": set[str](),
    "checkpoint": {"cache"},
    "sources": {"cache"},
    "precompute": {"cache", "checkpoint", "sources"},
    "infer": {"cache", "checkpoint"},
    "seeonce": {"cache", "checkpoint", "infer", "precompute", "sources"},
}
# Below seeonce, the same; what is not named here imports nothing of these.
BELOW_SEEONCE = {
    "commands": {"bench", "bridge", "demo", "fleet", "runs", "server", "verifier", "commands"},
    "bridge": {"runs", "verifier"},
    "bench": {"demo", "runs", "verifier"},
    "server": {"runs", "verifier"},
    "verifier": {"demo", "runs"},
    "runs": set[str](),
    "demo": set[str](),
}
PIN = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*( ; [^@:;]+)?")


@cache
def _imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return a module's imports, at its top or inside a function."""
    return _imports_in(path.read_text(encoding="utf-8"))


def _imports_in(source: str) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def _imported_by(imports: list[ast.Import | ast.ImportFrom]) -> set[str]:
    """Return the top-level names that are imported."""
    names: set[str] = set()
    for node in imports:
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _distribution(requirement: str) -> str:
    """Return the name that a requirement is about: "mlx" for "mlx[cpu]>=0.32"."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()


def _commands(app: typer.Typer) -> Iterator[list[str]]:
    """Yield the words that call each command of an app: ["store", "stats"]."""
    for command in app.registered_commands:
        yield [command.name or getattr(command.callback, "__name__", "").replace("_", "-")]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from ([str(group.name), *words] for words in _commands(group.typer_instance))


def _modules_after(tmp_path: Path, statements: str) -> set[str]:
    """Run statements in a Python of its own, and return the top-level modules that it has loaded."""
    program = (
        "import sys\n"
        f"try:\n    {statements}\n"
        "finally:\n    print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    home = {"SEEONCE_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=home, timeout=120,
    )  # fmt: skip
    loaded = [line for line in run.stdout.splitlines() if line.startswith("LOADED ")]
    assert run.returncode == 0, run.stderr
    return set(loaded[-1].split()[1:])


NEED_NO_MODEL = (
    "seeonce --help",
    "verify-cache --help",
    "seeonce describe --help",
    "seeonce recordings",
    "seeonce export --help",
    "seeonce store stats",
    "seeonce runs",
    "seeonce run --help",
    "seeonce report --help",
    "seeonce store repair --help",
)
RUN_EACH = f"""for line in {NEED_NO_MODEL}:
        sys.argv = line.split()
        try:
            {{"seeonce": main, "verify-cache": verify_cache}}[sys.argv[0]]()
        except SystemExit as ended:
            assert not ended.code, line
        slow = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]
        assert not slow, f"{{line}} imports {{slow}}"
"""


def test_commands_that_need_no_model_import_nothing_of_mlx(tmp_path: Path) -> None:
    loaded = _modules_after(tmp_path, "from seeonce.__main__ import main, verify_cache\n    " + RUN_EACH)
    assert "seeonce" in loaded
    assert loaded.isdisjoint(SLOW_TO_IMPORT)


def test_loaded_modules_are_seen_when_they_are_loaded(tmp_path: Path) -> None:
    assert "mlx" in _modules_after(tmp_path, "import mlx.core")


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        ours = _imported_by(_imports(module)) & set(PACKAGES)
        beyond = ours - ALLOWED[package] - {package}
        assert not beyond, f"{module.relative_to(ROOT)} imports {', '.join(sorted(beyond))}"


@pytest.mark.parametrize("package", sorted(BELOW_SEEONCE))
def test_below_seeonce_imports_run_one_way_too(package: str) -> None:
    for module in sorted((ROOT / "seeonce" / package).rglob("*.py")):
        for node in _imports(module):
            if not isinstance(node, ast.ImportFrom):
                continue
            named = node.module or ""
            first, _, rest = named.partition(".")
            if first == "seeonce":
                taken = [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]
                assert set(taken) <= BELOW_SEEONCE[package] | {package}, (
                    f"{module.relative_to(ROOT)}: {named}"
                )


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    imports = {name: _modules_named(path, set(modules)) - {name} for name, path in modules.items()}
    assert imports["seeonce.api"] > {"cache.store", "seeonce.runs.describe"}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def _modules_named(path: Path, modules: set[str]) -> set[str]:
    """Return those of ``modules`` that a file imports, at its top or inside a function."""
    named: set[str] = set()
    for node in _imports(path):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= (below & modules) or {node.module}
    return named & modules


def test_the_passes_never_import_each_other_and_the_store_is_a_leaf() -> None:
    assert "infer" not in ALLOWED["precompute"]
    assert "precompute" not in ALLOWED["infer"]
    assert not ALLOWED["cache"]


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import cache.store\ndef f():\n    from seeonce.runs.run import Run\nfrom . import mlx\n"
    assert _imported_by(_imports_in(source)) == {"cache", "seeonce"}


def test_nobody_imports_a_package_bare() -> None:
    may_be_bare = re.compile(rf"\bimport\b.*\b({'|'.join(ALLOWED)})\b")
    for module in ROOT.glob("[!.]*/**/*.py"):
        text = module.read_text(encoding="utf-8")
        for node in _imports_in(text) if may_be_bare.search(text) else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            bare = set(names) & (set(ALLOWED) - {"seeonce"})
            assert not bare, f"{module.relative_to(ROOT)}: from {bare}.module import …"


def test_the_wheel_takes_every_package_and_git_ignores_none_of_them() -> None:
    only_include = _pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {Path(name).stem for name in only_include} == set(PACKAGES)
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    shipped = [str(path) for name in only_include for path in [ROOT / name, *ROOT.glob(f"{name}/**/*.py")]]
    ignored = subprocess.run(["git", "check-ignore", *shipped], capture_output=True, text=True, cwd=ROOT)
    assert ignored.returncode == 1, f"the wheel would lack {ignored.stdout or ignored.stderr}"


def test_tests_are_flat_and_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "tests").glob("*/**/test_*.py"))


def test_every_help_shows_an_example_that_names_its_command() -> None:
    from seeonce.commands import main

    calls = [(main.app, "seeonce", words) for words in _commands(main.app)]
    calls += [(main.verify_app, "verify-cache", [])]
    assert {"encode", "describe", "recordings"} <= {words[0] for _, _, words in calls if words}
    for app, program, words in calls:
        help_text = CliRunner().invoke(app, [*words, "--help"]).output
        example = " ".join(help_text.split()).partition("Example: ")[2]
        assert " ".join([program, *words]) in example, f"{program} {words} --help shows no example"


def test_constraints_are_pins_and_hold_no_address() -> None:
    assert _pins()
    for line in _pins():
        assert PIN.fullmatch(line), line
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_everything_that_is_asked_for_is_pinned() -> None:
    project, groups = _pyproject()["project"], _pyproject()["dependency-groups"]
    pinned = {line.partition("==")[0] for line in _pins()}
    assert {_distribution(name) for name in [*project["dependencies"], *groups["dev"]]} <= pinned


def test_only_training_the_demo_and_a_second_reference_ask_for_torch() -> None:
    project, groups = _pyproject()["project"], _pyproject()["dependency-groups"]
    optional = dict(project["optional-dependencies"])
    assert [_distribution(name) for name in optional.pop("transformers-reference")] == ["torch"]
    extras = [name for extra in optional.values() for name in extra]
    asked = {_distribution(name) for name in [*project["dependencies"], *extras, *groups["dev"]]}
    assert "torch" not in asked
    assert [_distribution(name) for name in groups["train"]] == ["torch"]


def test_a_constraint_with_an_address_would_be_seen() -> None:
    assert not PIN.fullmatch("mlx @ https://example.org/mlx.whl")
    assert not PIN.fullmatch("--index-url https://example.org/simple")
    assert PIN.fullmatch("zarr==3.1.6 ; python_full_version < '3.12'")
