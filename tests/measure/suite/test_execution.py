"""Programs of a model in a process of their own: limits of time, output and memory, and nothing left behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from mixq.measure.suite import execution
from mixq.measure.suite.execution import run_program
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
    pid = tmp_path / "pid"
    code = "import subprocess, sys, time\nsleep = 'import time; time.sleep(600)'\n"
    code += "child = subprocess.Popen([sys.executable, '-c', sleep])\n"
    code += f"open({str(pid)!r}, 'w').write(str(child.pid))\nprint('x', flush=True)\ntime.sleep(600)"
    outcome = run_program(code)
    assert (outcome.code, outcome.output) == (None, "x\n")
    deadline = time.monotonic() + 120
    while _runs(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_output_files_and_memory_are_bounded() -> None:
    endless = run_program("while True: print('x' * 1000)")
    assert endless.code != 0
    assert len(endless.output) == execution.MAX_OUTPUT
    large = run_program(f"with open('f', 'wb') as file: file.write(bytes({execution.MAX_OUTPUT} + 1))")
    assert large.code != 0
    memory = run_program(f"x = bytearray({2 * execution.MAX_MEMORY})")
    assert memory.last_error == "MemoryError"


def test_a_game_that_starts() -> None:
    outcome = run_program(SNAKE, seconds=120.0, on_terminal=True)
    assert outcome.code == 0
    assert "#" in outcome.output


def test_a_game_that_ends_by_itself() -> None:
    code = (
        "import curses\ncurses.wrapper(lambda screen: screen.addstr(0, 0, str(screen.getmaxyx())) or screen.refresh())"
    )
    outcome = run_program(code, seconds=120.0, on_terminal=True)
    assert outcome.code == 0
    assert "(24, 80)" in outcome.output


def test_a_game_that_fails_at_its_start() -> None:
    code = "import curses\ncurses.wrapper(lambda screen: screen.addch(99, 99, 'x'))"
    outcome = run_program(code, seconds=120.0, on_terminal=True)
    assert outcome.code == 1
    assert outcome.last_error.startswith("_curses.error: ")


def test_a_game_that_draws_without_a_pause_is_not_a_failure() -> None:
    assert run_program("while True: print('#' * 1000)", seconds=5.0, on_terminal=True).code in (None, 0)
