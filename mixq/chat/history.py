"""The input history for the arrow keys, kept on disk.

Contract: only its owner can read the file, which has prompt_toolkit's format. A history that cannot be read or written
is kept in memory, and `problem` has the reason. It is shortened only when the chat starts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from mixq.chat.saved_session import make_private_folder
from mixq.errors import MixqError, printable
from mixq.formats.atomic import atomic_write_bytes
from mixq.system import paths

MAX_BYTES = 2 << 20
KEPT_BYTES = 1 << 20


def history_file() -> Path:
    """Return the file of the chat's history."""
    return paths.home() / "chat_history"


class PrivateHistory(FileHistory):
    """The history of one chat.

    Attributes:
        problem: why it is not kept on disk; None if it is.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.problem: str | None = None
        self._path = path
        try:
            make_private_folder(path.parent)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            path.chmod(0o600)
            if path.stat().st_size > MAX_BYTES:
                self._shorten()
        except MixqError as error:
            self.problem = error.message
        except OSError as error:
            self.problem = _words(path, error)

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries, the latest first."""
        if self.problem is not None:
            return []
        try:
            return super().load_history_strings()
        except OSError as error:
            self.problem = _words(self._path, error)
            return []

    def store_string(self, string: str) -> None:
        """Add an entry."""
        if self.problem is None:
            try:
                super().store_string(string)
            except OSError as error:
                self.problem = _words(self._path, error)

    def _shorten(self) -> None:
        """Remove all but the latest entries; an entry starts with an empty line."""
        content = self._path.read_bytes()[-KEPT_BYTES:]
        with contextlib.suppress(ValueError):
            content = content[content.index(b"\n\n#") + 1 :]
        atomic_write_bytes(self._path, content, private=True)


def _words(path: Path, error: OSError) -> str:
    return f"the history is not kept: {printable(path)}: {printable(error.strerror or error)}."
