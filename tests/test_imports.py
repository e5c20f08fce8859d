"""The arrows between files: packages, rooms and files import one another in one direction only.

The imports are read from the syntax tree, those inside functions included, so that nothing has to be run.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scaling", "sweeps", "analysis")
# The rooms of each package in the order of their arrows: a file imports its own room and those before it.
ROOMS = {
    "scaling": (
        *(
            "exit_codes",
            "errors",
            "type_checks",
            "terminal",
            "files",
            "quantities",
            "signals",
            "config",
            "accounting",
            "recipes",
            "world",
            "data",
            "model",
            "generation",
        ),
        *("record", "measurements", "attacks", "training", "export", "performance", "commands", "cli"),
    ),
    "sweeps": ("grids", "trunks", "catalog", "local", "planning", "running", "clusters", "commands"),
    "analysis": (
        *(
            "errors",
            "type_checks",
            "terminal",
            "files",
            "quantities",
            "laws",
            "tables",
            "fitting",
            "forecasting",
            "downstream",
            "design",
            "plots",
            "api",
        ),
        *("report", "replicate", "commands"),
    ),
}


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """The modules of our packages that each of our modules imports, by dotted name."""
    files = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return {name: frozenset(imported_modules(path, files.keys()) - {name}) for name, path in files.items()}


def module_name(path: Path) -> str:
    """The dotted name of a file: scaling/data/shards.py is scaling.data.shards, an __init__.py its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: object) -> set[str]:
    """Names of the given modules that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules else node.module)
    return {name for name in names if name in modules}


def room(module: str) -> str:
    """The room of a module inside its package: `config` of scaling.config.fields; "" of the package itself."""
    return [*module.split("."), ""][1]


def circle(arrows: dict[str, frozenset[str]]) -> list[str]:
    """The names on a circle of arrows, first and last alike, or [] where there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(arrows.get(name, ())):
            if names := visit(target, [*path, name]):
                return names
        finished.add(name)
        return []

    return next((names for name in sorted(arrows) if (names := visit(name, []))), [])


def test_no_circle_of_files() -> None:
    assert circle(imports()) == []


def test_a_circle_is_noticed() -> None:
    assert circle({"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"})}) == ["b", "c", "b"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_in_the_order(package: str) -> None:
    names = {room(module) for module in imports() if module.split(".")[0] == package} - {""}
    assert names <= set(ROOMS[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_the_rooms_before_them(package: str) -> None:
    order = ROOMS[package]
    wrong = [
        f"{module} -> {target}"
        for module, targets in sorted(imports().items())
        for target in sorted(targets)
        if module.split(".")[0] == target.split(".")[0] == package and room(module) and room(target)
        if order.index(room(target)) > order.index(room(module))
    ]
    assert wrong == []


def test_packages_import_in_one_direction() -> None:
    def of(package: str, *excepted: str) -> set[str]:
        """Other packages of ours that a package's modules import, but for the modules below `excepted`."""
        return {
            target.split(".")[0]
            for module, targets in imports().items()
            if module.split(".")[0] == package and not module.startswith(excepted)
            for target in targets
        } - {package}

    assert of("analysis") == set()
    assert of("sweeps", "sweeps.commands") == {"scaling"}
    assert of("scaling", "scaling.cli") == set()


@pytest.mark.parametrize("name", ["type_checks.py", "terminal.py"])
def test_files_that_two_packages_have_are_equal(name: str) -> None:
    first, second = ((ROOT / package / name).read_text() for package in ("scaling", "analysis"))
    assert first == second, "neither package may import the other: copy the file that was changed"
