"""Imports go down only (DESIGN section 4): a module may import its own layer and the ones below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top of the house to the ground. Modules on one line may import each other.
LAYERS = [
    ["mixq.cli", "mixq.__main__"],
    ["mixq.plots", "mixq.server", "mixq.suite", "mixq.tui"],
    ["mixq.quantize"],
    ["mixq.bench"],
    [
        "mixq",
        "mixq.answer",
        "mixq.batching",
        "mixq.conversations",
        "mixq.engine",
        "mixq.describe",
        "mixq.evaluate",
        "mixq.experiments",
        "mixq.events",
        "mixq.generate",
        "mixq.generation_config",
        "mixq.loading",
        "mixq.placement",
        "mixq.prompt_file",
        "mixq.recorder",
        "mixq.problems",
        "mixq.request",
        "mixq.sampling",
        "mixq.session",
        "mixq.diagnosis",
        "mixq.transformers",
    ],
    ["mixq.plan"],
    ["mixq.model"],
    ["mixq.experts"],
    ["mixq.cost"],
    ["mixq.text"],
    ["mixq.accelerators"],
    ["mixq.kernels"],
    ["mixq.store"],
    ["mixq.formats"],
    [
        "mixq.errors",
        "mixq.config",
        "mixq.control_group",
        "mixq.memory",
        "mixq.huge_pages",
        "mixq.paths",
        "mixq.models",
    ],
]
ONLY_THE_CLI_MAY_IMPORT = ("typer", "rich")


def layer_of(module: str) -> int:
    known = [
        (len(name), depth)
        for depth, names in enumerate(LAYERS)
        for name in names
        if module == name or (name != "mixq" and module.startswith(name + "."))
    ]
    assert known, f"{module} stands in no layer; add it to LAYERS"
    return max(known)[1]


def sources() -> list[tuple[str, Path]]:
    found = []
    for folder, package in ((ROOT / "mixq", "mixq"), (ROOT / "quantize", "mixq.quantize")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append((".".join((package, *(p for p in parts if p != "__init__"))), path))
    return found


def imported_modules(path: Path) -> set[str]:
    """Return what a file imports, lazily too; `from a import b` counts as a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            known = {name for name, _ in sources()}
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found


@pytest.mark.parametrize(("module", "path"), sources(), ids=[name for name, _ in sources()])
def test_imports_go_down_only(module: str, path: Path) -> None:
    for imported in imported_modules(path):
        if imported.split(".")[0] == "mixq":
            assert layer_of(module) <= layer_of(imported), f"{module} imports {imported}, which stands above it"
        if imported.split(".")[0] in ONLY_THE_CLI_MAY_IMPORT:
            assert module.startswith(("mixq.cli", "mixq.tui")), f"{module} draws on the terminal"


PICKLED = "mixq.quantize.sources.pickled"
"""Reads torch's own files, by the restricted unpickler alone; imports pickle for the name of its error."""


def test_nothing_executes_what_a_file_says() -> None:
    """No pickle, no eval, no dynamic import of a checkpoint's code (DESIGN section 8)."""
    for module, path in sources():
        imports = imported_modules(path)
        assert "pickle" not in imports or module == PICKLED, module
        assert not imports & {"marshal", "shelve", "runpy", "transformers"}, module
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{module}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                if module == PICKLED:
                    flags = {word.arg: word.value for word in node.keywords}
                    assert ast.unparse(flags["weights_only"]) == ast.unparse(flags["mmap"]) == "True"
                    continue
                assert not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "np")), module
