"""The place of a checkpoint's files: a folder, or a repository on a hub (`hub`).

Contract: a `Place` provides files by name. `safetensors` returns the tensors of some files without reading them; `read`
is for small files, with a size limit.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.shards import ShardSet
from mixq.formats.weights import StoredTensors

SMALL_FILE = 32 << 20
"""The largest file that is read as a whole: tokenizer.json is the largest of its kind, some 10 MB."""

SAMPLES = 64
SAMPLE_BYTES = 4096
ENDS = 1 << 20


class Place(ABC):
    """Files by name."""

    name: str  # for reports; not a local path
    files: Mapping[str, int]  # bytes by file name, without files in subfolders
    path: Path | None = None  # the folder, if it is on this computer
    revision: str | None = None  # the commit, if it is a repository

    @abstractmethod
    def read(self, name: str, limit: int = SMALL_FILE) -> bytes:
        """Return a file of at most `limit` bytes.

        Raises:
            ModelFileError: it is larger, or does not exist.
            StorageError: it cannot be read.
        """

    @abstractmethod
    def safetensors(self, names: Sequence[str], weight_map: Mapping[str, str] | None) -> StoredTensors:
        """Return the tensors of safetensors files, which must be in the files of `weight_map`, {tensor: file}."""

    @abstractmethod
    def fingerprint(self, names: Sequence[str]) -> str:
        """Return a hash that changes when one of these files changes, without reading them whole."""

    def cancel(self) -> None:  # noqa: B027  (reading a folder never waits)
        """End current reads soon, and later ones at once, with an error."""


class Folder(Place):
    """A folder as a place.

    Raises:
        ModelFileError: there is no such folder.
        StorageError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ModelFileError(f"{printable(path)} is not a folder.")
        self.path = self._folder = path
        self.name = path.resolve().name
        with reading(path):
            self.files = {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}

    def read(self, name: str, limit: int = SMALL_FILE) -> bytes:
        path = self._folder / name
        if name not in self.files:
            raise ModelFileError(f"{printable(self._folder)} has no {printable(name)}.")
        with reading(path), path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ModelFileError(f"{printable(path)} has more than {limit:,} bytes, more than such a file can have.")
        return content

    def safetensors(self, names: Sequence[str], weight_map: Mapping[str, str] | None) -> StoredTensors:
        return ShardSet.of_files(self._folder, names, weight_map)

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash each file's name, size, first and last MiB and 64 samples of 4 KiB.

        A repeated or moved download has the same fingerprint; another training of the same model has another. Reading
        all of Mixtral's 93 GB at every start would take minutes.
        """
        return sampled(*(self._folder / name for name in names))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise StorageError for an OSError inside: `path` cannot be read."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error


def sampled(*paths: Path, first: str = "") -> str:
    """Return a hash, in hex, of `first` and of each file's name, size and samples; raises StorageError."""
    whole = hashlib.sha256(first.encode())
    for path in paths:
        digest = hashlib.sha256()
        with reading(path), path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            digest.update(file.read(ENDS))
            for i in range(SAMPLES):
                file.seek(size * i // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
        whole.update(digest.digest())
    return whole.hexdigest()
