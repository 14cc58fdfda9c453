"""A real terminal for tests: tmux with a socket of its own, its screen polled until it is as wanted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

DEADLINE = 240.0
ROOT = Path(__file__).parents[2]


class Tmux:
    """One window in which a command runs; its last screen stays when the command has ended.

    Args:
        command: words, run in the repository.
        environment: besides the tests' own.
    """

    def __init__(
        self, *command: str, columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None
    ) -> None:
        self._socket = f"mixq-{uuid.uuid4().hex[:8]}"
        wanted = {"MIXQ_HOME": os.environ.get("MIXQ_HOME", ""), "OMP_NUM_THREADS": "1", **(environment or {})}
        without = ["-u", "NO_COLOR", "-u", "EDITOR", "-u", "VISUAL"]
        words = ["env", *without, *(f"{name}={value}" for name, value in wanted.items() if value), *command]
        self._call("-f", "/dev/null", "new-session", "-d", "-x", f"{columns}", "-y", f"{rows}", "sh")
        self._call("set", "-g", "remain-on-exit", "on")
        self._call("set", "-g", "history-limit", "5000")
        self._call("set", "-g", "default-terminal", "tmux-256color")
        self._call("set", "-g", "window-size", "manual")
        # tmux does not always notice the end of a process, so the shell writes it down.
        self._ended = Path(tempfile.mkdtemp(prefix="mixq-tmux-")) / "code"
        noted = f"{shlex.join(words)}; echo $? > {self._ended}.new; mv {self._ended}.new {self._ended}"
        self._call("respawn-pane", "-k", "-c", str(ROOT), noted)

    def _call(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-L", self._socket, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def type(self, text: str) -> None:
        """Type characters as they are."""
        self._call("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names."""
        self._call("send-keys", *keys)

    def say(self, text: str) -> None:
        """Type a line, and Enter."""
        self.type(text)
        self.press("Enter")

    def paste(self, text: str) -> None:
        """Paste, in brackets where the program asked for them."""
        self._call("set-buffer", text)
        self._call("paste-buffer", "-p", "-r")

    def resize(self, columns: int, rows: int) -> None:
        self._call("resize-window", "-x", f"{columns}", "-y", f"{rows}")

    def screen(self) -> str:
        """Return what is on the screen, without empty lines at its end."""
        return self._call("capture-pane", "-p").rstrip("\n")

    def coloured(self) -> str:
        """Return the screen with its colours."""
        return self._call("capture-pane", "-p", "-e").rstrip("\n")

    def history(self) -> str:
        """Return everything: what has scrolled away, and the screen."""
        return self._call("capture-pane", "-p", "-S", "-", "-J").rstrip("\n")

    def wait_for(self, pattern: str, times: int = 1) -> str:
        """Wait until the screen shows `pattern` so many times, and return the screen."""
        end = time.monotonic() + DEADLINE
        while True:
            over = self._ended.exists() or time.monotonic() >= end
            screen = self.screen()
            if len(re.findall(pattern, screen, re.MULTILINE)) >= times:
                return screen
            assert not over, f"{pattern!r} did not appear {times} times in\n{screen}"
            time.sleep(0.05)

    def title(self) -> str:
        """Return what the program has made the window's title."""
        return self._call("display-message", "-p", "#{pane_title}").strip()

    def pid(self) -> int:
        """Return the process of the command."""
        shell = self._call("display-message", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def exit_code(self) -> int:
        """Wait for the command's end."""
        end = time.monotonic() + DEADLINE
        while not self._ended.exists():
            assert time.monotonic() < end, f"the command goes on\n{self.screen()}"
            time.sleep(0.05)
        return int(self._ended.read_text())

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)
        shutil.rmtree(self._ended.parent)


def mixq(*arguments: str, columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None) -> Tmux:
    """Return a window in which `mixq ARGUMENTS` runs."""
    return Tmux(sys.executable, "-m", "mixq", *arguments, columns=columns, rows=rows, environment=environment)
