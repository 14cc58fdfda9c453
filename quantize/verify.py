"""Compares a folder with what the job wrote: every file's sha256, and the structure of the whole.

Contract: `verify` reads every file that mixq.json names, compares sums, and opens the folder as the runtime would. It
finds changed, truncated, missing and additional files and reports all of them. It changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixq.errors import MixqError, ModelFileError, printable
from mixq.formats import lock
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.formats.manifest import Manifest
from mixq.quantize import journal
from mixq.quantize.sources.place import reading
from mixq.quantize.sources.source import SIDE_FILES

BLOCK = 1 << 22

ADDED_LATER = (
    "was added after quantizing; put it into the source too and run the same mixq quantize command again: "
    "it enters the file into mixq.json and keeps the weights"
)
"""For a tokenizer or another side file that mixq.json does not name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One difference; `file` is the folder's name where it concerns the whole."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, and the differences found."""

    path: Path
    files: int
    nbytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {**asdict(self), "path": str(self.path), "ok": self.ok}


def verify(path: Path | str, *, on_progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Check a folder that `mixq quantize` made.

    Args:
        on_progress: called with (file, bytes read, bytes of all files) while reading.

    Raises:
        ModelFileError: no such folder, an unfinished one, or one without mixq.json.
        StorageError: a file that exists but cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelFileError(f"{printable(path)} is not a folder.")
    if (path / journal.FILE_NAME).exists():
        raise ModelFileError(
            f"{printable(path)} is not finished: its quantize job was interrupted.",
            hint="Run the same mixq quantize command again to resume it.",
        )
    if not (path / MANIFEST).exists():
        raise ModelFileError(
            f"{printable(path)} has no {MANIFEST}, so there are no checksums to compare with.",
            hint="Only folders that mixq quantize made can be verified.",
        )
    manifest = Manifest.read(path)
    sums = {**manifest.shards, **manifest.files}
    there = {name: (path / name).stat().st_size for name in sums if (path / name).is_file()}
    total, done = sum(there.values()), 0
    problems = [Problem(name, "is missing") for name in sums if name not in there]
    for name in there:
        digest = hashlib.sha256()
        with reading(path / name), (path / name).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                if on_progress is not None:
                    on_progress(name, done, total)
        if digest.hexdigest() != sums[name]:
            problems.append(Problem(name, "was changed: its sha256 is not the one in mixq.json"))
    written = (path / MANIFEST).read_bytes()
    if b'"sha256":' in written and written != manifest.to_bytes():  # older ones have no sum and fewer fields
        problems.append(Problem(MANIFEST, "was changed: it is not as mixq writes it"))
    known = {*sums, MANIFEST, lock.FILE_NAME}  # a killed job may leave its lock file
    problems += [
        Problem(printable(extra.name), ADDED_LATER if extra.name in SIDE_FILES else "is not part of the model")
        for extra in sorted(path.iterdir())
        if extra.name not in known
    ]
    try:
        ModelFolder.open(path)
    except MixqError as error:
        problems.append(Problem(printable(path.name), error.message))
    return VerifyReport(path, len(there), done, tuple(problems))
