"""Programs of a model in a process of their own: limits of time, output and memory, and nothing left behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mixq.measure.suite import execution
from mixq.measure.suite.execution import run_program, start_game
from tests.measure.suite.test_writing import SNAKE


def left_behind() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("mixq-suite-")]


def test_output_errors_and_exit_code() -> None:
    outcome = run_program("print('é')\nraise SystemExit(3)")
    assert (outcome.code, outcome.output.strip(), outcome.errors) == (3, "é", "")
    failed = run_program("print(1)\n1 / 0")
    assert (failed.code, failed.output.strip(), failed.last_error) == (1, "1", "ZeroDivisionError: division by zero")


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    before = left_behind()
    code = "import os, sys\nprint(sorted(os.environ), os.listdir('.'), sys.flags.isolated, sys.stdin.read() == '')"
    outcome = run_program(code)
    assert "HF_TOKEN" not in outcome.output
    assert "['main.py'] 1 True" in outcome.output
    assert left_behind() == before


def test_a_program_without_end_is_killed_with_its_children(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    child = f"import time; time.sleep(2); open({str(sign)!r}, 'w')"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    code += "print('x', flush=True)\nwhile True: pass"
    outcome = run_program(code, seconds=1.0)
    assert (outcome.code, outcome.output) == (None, "x\n")
    assert run_program("import time; time.sleep(2)").code == 0
    assert not sign.exists()


def test_output_files_and_memory_are_bounded() -> None:
    endless = run_program("while True: print('x' * 1000)")
    assert endless.code != 0
    assert len(endless.output) == execution.MAX_OUTPUT
    large = run_program(f"with open('f', 'wb') as file: file.write(bytes({execution.MAX_OUTPUT} + 1))")
    assert large.code != 0
    memory = run_program(f"x = bytearray({2 * execution.MAX_MEMORY})")
    assert memory.last_error == "MemoryError"


def test_a_game_that_starts() -> None:
    outcome = start_game(SNAKE, seconds=1.0)
    assert outcome.code in (None, 0)
    assert "#" in outcome.output


def test_a_game_that_ends_by_itself() -> None:
    code = (
        "import curses\ncurses.wrapper(lambda screen: screen.addstr(0, 0, str(screen.getmaxyx())) or screen.refresh())"
    )
    outcome = start_game(code, seconds=20.0)
    assert outcome.code == 0
    assert "(24, 80)" in outcome.output


def test_a_game_that_fails_at_its_start() -> None:
    outcome = start_game("import curses\ncurses.wrapper(lambda screen: screen.addch(99, 99, 'x'))", seconds=20.0)
    assert outcome.code == 1
    assert outcome.last_error.startswith("_curses.error: ")
