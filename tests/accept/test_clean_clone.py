"""The README's first command on a clean clone: a new virtual environment, an empty cache, a piped conversation."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from mixq.models.world import arithmetic
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
ROOT = Path(__file__).parents[2]
EXPRESSIONS = ("25 - (4 * 2) + 3", "3 + 4 * 5", "(7 + 5) * 4 - 6", "40 - 17", "9 * 8 - (6 + 5)")


def value_of(expression: str) -> str:
    tokens = expression.replace("(", "( ").replace(")", " )").split()
    return arithmetic.worked(tokens).rsplit(" = ", 1)[1]


def test_make_chat_on_a_clean_clone(tmp_path: Path) -> None:
    clone = tmp_path / "mixq"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MIXQ", "PYTHON", "VIRTUAL_ENV", "XDG"))}
    environment["HOME"] = str(tmp_path / "home")
    questions = [f"What is {e}?" for e in EXPRESSIONS]
    started = time.perf_counter()
    chat = subprocess.run(
        ["make", "-s", "chat"],
        check=False,
        cwd=clone,
        env=environment,
        input="\n".join(questions) + "\n",
        text=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - started
    assert chat.returncode == 0, chat.stderr
    answers = [line for line in chat.stdout.splitlines() if line.strip()]
    rows = [[f"`{q}`", f"`{a}`"] for q, a in zip(questions, answers, strict=True)]
    how = (
        "A clean clone, no virtual environment, an empty cache; questions piped into `make chat`, which installs, "
        f"quantizes the demo model and answers: {seconds:.0f} seconds in all. Made by `make accept`."
    )
    write("make_chat", "make chat on a clean clone", how, markdown(["question", "answer"], rows))
    for expression, answer in zip(EXPRESSIONS, answers, strict=True):
        assert answer.endswith(value_of(expression)), (expression, answer)
