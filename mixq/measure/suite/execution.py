"""A model's Python program in a process of its own, for `--execute`.

Contract: this is no sandbox: the program runs with the user's rights. It runs in Python's isolated mode, in an empty
temporary folder that is removed, without the environment (no keys, no home), with a limit of time and of output and,
where the platform has them, of memory, processor time and file size; its whole process group is killed at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SECONDS = 10.0
MAX_OUTPUT = 1 << 20
MAX_MEMORY = 1 << 30
GAME_SECONDS = 2.0
SCREEN = (24, 80)
HAS_TERMINALS = sys.platform != "win32"

# Limits outlive exec; set in a Python of their own they need no code between fork and exec of a process with threads.
_LIMITED = """
import os, resource, sys
for kind, limit in ((resource.RLIMIT_AS, {memory}), (resource.RLIMIT_CPU, {seconds}), (resource.RLIMIT_FSIZE, {size}),
                    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
    try:
        resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError):
        pass
os.execv(sys.executable, [sys.executable, "-I", "-B", sys.argv[1]])
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended; `code` is None where it was killed at its limit of time."""

    code: int | None
    output: str
    errors: str

    @property
    def last_error(self) -> str:
        """The last line of what it said on standard error."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit code {self.code}"


def run_program(code: str, *, seconds: float = SECONDS) -> Outcome:
    """Run a program to its end, or to its limits, without standard input."""
    with _prepared(code, seconds) as (command, folder, environment):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=HAS_TERMINALS,
        )
        texts = ["", ""]
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=_read, args=(stream, texts, place, process))
            for place, stream in enumerate((process.stdout, process.stderr))
        ]
        try:
            for reader in readers:
                reader.start()
            try:
                code_of_exit: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code_of_exit = None
        finally:
            _kill(process)
            for reader in readers:
                reader.join()
    return Outcome(code_of_exit, texts[0], texts[1])


def start_game(code: str, *, seconds: float = GAME_SECONDS) -> Outcome:
    """Start a program on a terminal of its own and stop it after some seconds; only where `HAS_TERMINALS`."""
    if sys.platform == "win32":
        raise AssertionError("asked for where there are no pseudo-terminals")
    import fcntl
    import pty
    import struct
    import termios

    with _prepared(code, seconds + SECONDS) as (command, folder, environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *SCREEN, 0, 0))
        errors = folder / "errors"
        with errors.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, "TERM": "xterm", "LINES": str(SCREEN[0]), "COLUMNS": str(SCREEN[1])},
                stdin=theirs,
                stdout=theirs,
                stderr=file,
                start_new_session=True,
            )
        os.close(theirs)
        try:
            screen = _watch(process, ours, seconds)
            code_of_exit = process.poll()
        finally:
            _kill(process)
            os.close(ours)
        said = errors.read_bytes()[-MAX_OUTPUT:].decode("utf-8", "replace")
    return Outcome(code_of_exit, screen, said)


def _watch(process: subprocess.Popen[bytes], terminal: int, seconds: float) -> str:
    """Return what a process writes on its terminal until it ends or the time is over."""
    screen, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and len(screen) < MAX_OUTPUT:
        readable, _, _ = select.select([terminal], [], [], 0.05)
        if readable:
            try:
                screen += os.read(terminal, 1 << 16)
            except OSError:  # Linux says so when the last process has closed it
                break
        elif process.poll() is not None:
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, min(1.0, end - time.monotonic())))
    return screen.decode("utf-8", "replace")


@contextlib.contextmanager
def _prepared(code: str, seconds: float) -> Iterator[tuple[list[str], Path, dict[str, str]]]:
    """Give the command, folder and environment of a program."""
    with tempfile.TemporaryDirectory(prefix="mixq-suite-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "main.py").write_text(code, "utf-8", errors="replace")
        command = [sys.executable, "-I", "-B", "main.py"]
        if HAS_TERMINALS:
            limits = {"memory": MAX_MEMORY, "seconds": int(seconds) + 1, "size": MAX_OUTPUT}
            launcher = re.sub(r"\{(\w+)\}", lambda match: str(limits[match[1]]), _LIMITED)
            command = [sys.executable, "-I", "-B", "-c", launcher, "main.py"]
        kept = ("SYSTEMROOT", "PATH", "LANG", "LC_ALL")
        yield command, folder, {key: os.environ[key] for key in kept if key in os.environ}


def _read(stream: IO[bytes], texts: list[str], place: int, process: subprocess.Popen[bytes]) -> None:
    """Keep what comes, up to a limit; a program that writes more is ended."""
    content = stream.read(MAX_OUTPUT)
    texts[place] = content.decode("utf-8", "replace")
    if len(content) == MAX_OUTPUT:
        _kill(process)
    stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
