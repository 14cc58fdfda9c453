"""Runs a model's Python program in a separate process, for `--execute`.

Contract: this is not a sandbox: the program runs with the user's permissions. It runs in Python's isolated mode, in an
empty temporary folder that is removed, without environment variables (no keys, no home), with a time limit and, if the
platform has them, limits of output, memory, processor time and file size. Its process group is killed at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SECONDS = 10.0
GAME_SECONDS = 2.0
MAX_OUTPUT = 1 << 20
MAX_MEMORY = 1 << 30
HAS_TERMINALS = sys.platform != "win32"

_PYTHON = [sys.executable, "-I", "-B"]
_TERMINAL = {"TERM": "xterm", "LINES": "24", "COLUMNS": "80"}

# Limits survive exec. A separate Python sets them, so that no code runs between fork and exec of a process with
# threads.
_LAUNCHER = """
import os, pty, resource, sys
on_terminal, memory, seconds, size = map(int, sys.argv[1:])
for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, size),
                    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    try:
        resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError):
        pass
program = [sys.executable, "-I", "-B", "main.py"]
if not on_terminal:
    os.execv(sys.executable, program)
try:
    status = pty.spawn(program)
except OSError:  # the output is full: it runs, and draws
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended; `code` is None if it was killed at its time limit."""

    code: int | None
    output: str
    errors: str

    @property
    def last_error(self) -> str:
        """The last line that it wrote to standard error; on a terminal, to the terminal."""
        lines = [line for line in (self.errors or self.output).splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit code {self.code}"


def run_program(code: str, *, seconds: float = SECONDS, on_terminal: bool = False) -> Outcome:
    """Run a program to its end or its limits, without input.

    Args:
        on_terminal: give it a terminal (only where `HAS_TERMINALS`); what it writes there is its output.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mixq-suite-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        Path(folder, "main.py").write_text(code, "utf-8", errors="replace")
        limits = [str(int(limit)) for limit in (on_terminal, MAX_MEMORY, seconds + 1, MAX_OUTPUT)]
        kept = ("SYSTEMROOT", "PATH", "LANG", "LC_ALL")
        process = subprocess.Popen(
            [*_PYTHON, "-c", _LAUNCHER, *limits] if HAS_TERMINALS else [*_PYTHON, "main.py"],
            cwd=folder,
            env={key: os.environ[key] for key in kept if key in os.environ} | (_TERMINAL if on_terminal else {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=HAS_TERMINALS,
        )
        try:
            code_of_exit: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code_of_exit = None
        finally:
            _kill(process)
        return Outcome(code_of_exit, _text(output), _text(errors))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT).decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all processes that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
