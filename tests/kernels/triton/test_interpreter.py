"""Every kernel against the reference, in Triton's interpreter.

The checks run in processes of their own: triton must be imported after TRITON_INTERPRET was set, and other tests in
this one may have imported it already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
CHECKS = sorted(path.stem for path in HERE.glob("check_*.py"))


def test_checks_are_found() -> None:
    assert len(CHECKS) >= 5


@pytest.mark.parametrize("check", CHECKS)
def test_kernels_in_the_interpreter(check: str) -> None:
    root = HERE.parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-x", str(HERE / f"{check}.py")],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        check=False,
        text=True,
        timeout=600,
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0, f"{check}.py failed; what it printed is above"
