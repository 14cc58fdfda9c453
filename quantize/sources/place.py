"""Where a checkpoint's files lie: a folder, or (see `hub`) a repository of a hub.

Contract: a `Place` knows files by name and nothing of what they mean. `safetensors` hands out the tensors of some of
them without reading them; `read` is for small files and bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.shards import ShardSet
from mixq.formats.stored import StoredTensors

SMALL_FILE = 32 << 20
"""The largest file that is read as a whole: tokenizer.json is the largest of its kind, some 10 MB."""

SAMPLES = 64
SAMPLE_BYTES = 4096
ENDS = 1 << 20


class Place(Protocol):
    """Files by name."""

    @property
    def name(self) -> str:
        """What to call it: no path of the user's machine."""
        ...

    @property
    def path(self) -> Path | None:
        """The folder, where it is one of this machine."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit, where it is a repository's."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes by file name; what lies in folders of the place is not among them."""
        ...

    def read(self, name: str, limit: int = SMALL_FILE) -> bytes:
        """Return a file of at most `limit` bytes.

        Raises:
            ModelFileError: it is larger, or not there.
            StorageError: it cannot be read.
        """
        ...

    def safetensors(self, names: Sequence[str], weight_map: Mapping[str, str] | None) -> StoredTensors:
        """Return the tensors of safetensors files, which must be where `weight_map`, {tensor: file}, has them."""
        ...

    def fingerprint(self, names: Sequence[str]) -> str:
        """Return a hash that changes when one of these files does, without reading them whole."""
        ...

    def cancel(self) -> None:
        """Make reads under way end soon, with an error, and later ones at once."""
        ...


class Folder:
    """A folder as a place.

    Raises:
        ModelFileError: there is no such folder.
        StorageError: it cannot be read.
    """

    revision = None

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ModelFileError(f"{printable(path)} is not a folder.")
        try:
            self.files = {entry.name: entry.stat().st_size for entry in sorted(path.iterdir()) if entry.is_file()}
        except OSError as error:
            raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def read(self, name: str, limit: int = SMALL_FILE) -> bytes:
        if name not in self.files:
            raise ModelFileError(f"{printable(self.path)} has no {printable(name)}.")
        try:
            with (self.path / name).open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise StorageError(f"{printable(self.path / name)} cannot be read: {printable(error)}.") from error
        if len(content) > limit:
            raise ModelFileError(f"{printable(self.path / name)} has more than {limit:,} bytes, too many for its kind.")
        return content

    def safetensors(self, names: Sequence[str], weight_map: Mapping[str, str] | None) -> StoredTensors:
        return ShardSet.of_files(self.path, names, weight_map)

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash each file's name, size, first and last MiB and 64 samples of 4 KiB.

        A download repeated or moved keeps its fingerprint, another training of the same model changes it; reading all
        of Mixtral's 93 GB at every start would take minutes.
        """
        digest = hashlib.sha256()
        for name in names:
            digest.update(sampled(self.path / name))
        return digest.hexdigest()

    def cancel(self) -> None:
        pass


def sampled(path: Path) -> bytes:
    """Return a hash of a file's name, size and samples; raises StorageError."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            for i in range(SAMPLES):
                file.seek(size * i // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error
    return digest.digest()
