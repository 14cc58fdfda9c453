"""`mixq run` at a pseudo-terminal, and its Ctrl-C. The chat at a terminal: tests/tui."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
TIMEOUT = 90.0


class Terminal:
    """A `mixq` at a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        # A session of its own, with the pseudo-terminal as controlling terminal, so that Ctrl-C is a signal.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        )
        os.close(slave)
        self.screen = ""

    def wait_for(self, pattern: str) -> None:
        """Read until `pattern` appears in what is new; what was found is not looked at again."""
        end = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < end, f"{pattern!r} did not appear in {self.screen!r}"
            if select.select([self.master], [], [], 1.0)[0]:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")
        self.screen = self.screen[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> int:
        code = self.process.wait(TIMEOUT)
        os.close(self.master)
        return code


_OWN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mixq.cli.main import main
main(sys.argv[1:])
"""


def test_second_interrupt_ends_the_program_with_130(quantized: Path) -> None:
    terminal = Terminal("run", str(quantized), "-p", "Hello", "--temperature", "1")
    terminal.wait_for(".{20}")
    terminal.type("\x03\x03")
    assert terminal.close() == 130


def test_run_without_a_prompt_at_a_terminal_does_not_wait(quantized: Path) -> None:
    terminal = Terminal("run", str(quantized))
    terminal.wait_for("No prompt")
    assert terminal.close() == 2
