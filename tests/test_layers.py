"""The architecture, held: one package a line, imports go down only, and no circle of imports anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"mixq": ROOT / "mixq", "mixq.quantize": ROOT / "quantize"}

LAYERS = (
    "mixq.__main__",
    "mixq.cli",
    "mixq.server",
    "mixq.chat",
    "mixq.measure",
    "mixq.quantize",
    "mixq.transformers",
    "mixq",
    "mixq.engine",
    "mixq.plan",
    "mixq.model",
    "mixq.experts",
    "mixq.text",
    "mixq.kernels",
    "mixq.formats",
    "mixq.models",
    "mixq.system",
    "mixq.config",
    "mixq.errors",
)
"""From the top to the ground. A package imports those below it; "mixq" alone is the file mixq/__init__.py."""

ROOT_FILES = {"__init__.py", "__main__.py", "config.py", "errors.py", "transformers.py", "py.typed", "README.md"}
ROOMS = 17
DRAW_ON_THE_TERMINAL = ("mixq.cli", "mixq.chat")
PICKLED = "mixq.quantize.sources.pickled"
"""Reads torch's own files, by the restricted unpickler alone; imports pickle for the name of its error."""


def sources() -> dict[str, Path]:
    """Return the file of each module."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()


def package_of(module: str) -> str:
    """Return the line of LAYERS that a module belongs to."""
    top = ".".join(module.split(".")[:2])
    assert top in LAYERS, f"{module} belongs to no layer; add {top} to LAYERS"
    return top


def imported_modules(text: str, name: str, known: Mapping[str, object]) -> set[str]:
    """Return what a file imports, in functions and under TYPE_CHECKING too; `from a import b` is a.b if a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found


def import_graph(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Return, for each module of the package, the modules of the package that it imports."""
    return {name: imported_modules(text, name, texts) & texts.keys() for name, text in texts.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other (strongly connected components; Tarjan, 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in graph[module]:
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def texts() -> dict[str, str]:
    return {name: path.read_text() for name, path in SOURCES.items()}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_only(module: str) -> None:
    own = package_of(module)
    for imported in imported_modules(SOURCES[module].read_text(), module, SOURCES):
        root = imported.split(".")[0]
        if root == "mixq" and package_of(imported) != own:
            assert LAYERS.index(own) < LAYERS.index(package_of(imported)), f"{module} imports {imported}, above it"
        if root in ("typer", "rich"):
            assert own in DRAW_ON_THE_TERMINAL, f"{module} draws on the terminal"


def test_no_circle_of_imports() -> None:
    assert circles(import_graph(texts())) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import {top}",
        "def late():\n    from {package} import {leaf}",
        "if TYPE_CHECKING:\n    from {top} import anything",
    ],
)
def test_a_planted_circle_is_found(planted: str) -> None:
    """In a module, in a function, and for types only."""
    changed = texts()
    top, low = "mixq.formats.folder", "mixq.formats.header"
    assert low in _reached(import_graph(changed), top)
    package, _, leaf = top.rpartition(".")
    changed[low] += "\n" + planted.format(top=top, package=package, leaf=leaf) + "\n"
    assert any({top, low} <= set(circle) for circle in circles(import_graph(changed)))


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def test_the_root_holds_folders_and_little_else() -> None:
    entries = [path for path in (ROOT / "mixq").iterdir() if path.name != "__pycache__"]
    files = {path.name for path in entries if path.is_file()}
    assert files <= ROOT_FILES, f"unexpected at the root of mixq/: {sorted(files - ROOT_FILES)}"
    python = [path for path in entries if path.is_dir() or path.suffix == ".py"]
    assert len(python) <= ROOMS, sorted(path.name for path in python)


def _calls(text: str) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_executes_what_a_file_says(module: str) -> None:
    """No pickle, no eval, no dynamic import of a checkpoint's code."""
    text = SOURCES[module].read_text()
    imports = imported_modules(text, module, SOURCES)
    assert "pickle" not in imports or module == PICKLED
    assert not imports & {"marshal", "shelve", "runpy", "transformers"}
    for call in _calls(text):
        if isinstance(call.func, ast.Name):
            assert call.func.id not in ("eval", "exec", "compile", "__import__"), f"{module}:{call.lineno}"
        if isinstance(call.func, ast.Attribute) and call.func.attr == "load":
            if module == PICKLED:
                flags = {word.arg: word.value for word in call.keywords}
                assert ast.unparse(flags["weights_only"]) == ast.unparse(flags["mmap"]) == "True"
                continue
            assert not (isinstance(call.func.value, ast.Name) and call.func.value.id in ("torch", "np")), module
