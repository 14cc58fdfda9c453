"""The tests of a change, in seconds: `make test-fast`.

Runs the test files that were changed, those named after a changed module, and those that import one; without a change,
the unit tests. Slow files (tests/conftest.py lists them) are left to `make test`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNIT = ("config", "experts", "fields", "formats", "layers", "system")
"""Folders and files of tests/ that run when nothing has changed."""


def changed_files() -> list[Path]:
    """Return what differs from the upstream branch, or else from the last commit; files that git does not know too."""
    upstream = _git("rev-parse", "--abbrev-ref", "@{upstream}") or ["HEAD"]
    names = [*_git("diff", "--name-only", upstream[0]), *_git("ls-files", "--others", "--exclude-standard")]
    return [ROOT / name for name in names]


def _git(*arguments: str) -> list[str]:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.split("\n")[:-1] if ran.returncode == 0 else []


def tests_of(changed: Iterable[Path]) -> set[Path]:
    """Return the test files that a change concerns."""
    found, modules, stems = set(), set(), set()
    for path in changed:
        parts = path.relative_to(ROOT).parts
        if parts[0] == "tests" and path.name.startswith("test_") and path.exists():
            found.add(path)
        elif path.suffix == ".py" and parts[0] in ("mixq", "quantize", "models"):
            folder = parts if parts[0] == "mixq" else ("mixq", *parts)
            modules.add(".".join(folder).removesuffix(".py"))
            stems.add((folder[1:-1], path.stem))
        elif "native" in parts:
            found |= set((ROOT / "tests" / "kernels").glob("test_native_*.py"))
    for test in ROOT.glob("tests/**/test_*.py"):
        folder = test.relative_to(ROOT / "tests").parts[:-1]
        if (folder, test.stem.removeprefix("test_")) in stems or _imports(test) & modules:
            found.add(test)
    return {test for test in found if "accept" not in test.parts}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def main() -> int:
    tests = sorted(map(str, tests_of(changed_files())))
    if not tests:
        tests = [str(path) for path in (ROOT / "tests").iterdir() if path.stem.removeprefix("test_") in UNIT]
    print(f"{len(tests)} of the test files and folders; `make test` runs all.", file=sys.stderr)
    return pytest.main(["-n", "2", "-m", "not accept and not slow", *tests])


if __name__ == "__main__":
    sys.exit(main())
