"""Does a folder still hold what the job wrote? Every file's sha256, and the structure of the whole.

Contract: `verify` reads every byte that mixq.json names, compares sums, and opens the folder as the runtime would. It
finds changed, cut, missing and additional files; it reports all of them rather than the first. It changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixq.errors import MixqError, ModelFileError, StorageError, printable
from mixq.formats import lock
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.formats.manifest import Manifest
from mixq.quantize import journal
from mixq.quantize.sources.huggingface import SIDE_FILES

BLOCK = 1 << 22

ADDED_LATER = (
    "was added after quantizing; put it into the source too and run the same mixq quantize command again: "
    "it enters the file into mixq.json and keeps the weights"
)
"""Of a tokenizer or another side file that mixq.json does not name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `file` is the folder's name where it concerns the whole."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked and what was found."""

    path: Path
    files: int
    nbytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "files": self.files,
            "nbytes": self.nbytes,
            "problems": [asdict(problem) for problem in self.problems],
        }


def verify(path: Path | str, *, on_progress: Callable[[str, int, int], None] | None = None) -> VerifyReport:
    """Check a folder that `mixq quantize` made.

    Args:
        on_progress: called with (file, bytes read, bytes of all files) while reading.

    Raises:
        ModelFileError: no such folder, an unfinished one, or one without mixq.json.
        StorageError: a file that is there but cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelFileError(f"{printable(path)} is not a folder.")
    if (path / journal.FILE_NAME).exists():
        raise ModelFileError(
            f"{printable(path)} is not finished: its quantize job was interrupted.",
            hint="Run the same mixq quantize command again; it goes on.",
        )
    if not (path / MANIFEST).exists():
        raise ModelFileError(
            f"{printable(path)} has no {MANIFEST}, so there are no sums to compare with.",
            hint="Only folders that mixq quantize made can be verified.",
        )
    manifest = Manifest.read(path)
    sums = {**manifest.shards, **manifest.files}
    there = {name: (path / name).stat().st_size for name in sums if (path / name).is_file()}
    total, done = sum(there.values()), 0
    problems = [Problem(name, "is missing") for name in sums if name not in there]
    for name in there:
        digest = hashlib.sha256()
        try:
            with (path / name).open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    done += len(block)
                    if on_progress is not None:
                        on_progress(name, done, total)
        except OSError as error:
            raise StorageError(f"{printable(path / name)} cannot be read: {printable(error)}.") from error
        if digest.hexdigest() != sums[name]:
            problems.append(Problem(name, "was changed: its sha256 is not the one in mixq.json"))
    written = (path / MANIFEST).read_bytes()
    if b'"sha256":' in written and written != manifest.to_bytes():  # before it had a sum of its own it had less in it
        problems.append(Problem(MANIFEST, "was changed: it is not as mixq writes it"))
    known = {*sums, MANIFEST, lock.FILE_NAME}  # a killed job's lock file, where it could not be removed, harms nothing
    problems += [
        Problem(printable(extra.name), ADDED_LATER if extra.name in SIDE_FILES else "is not part of the model")
        for extra in sorted(path.iterdir())
        if extra.name not in known
    ]
    problems += _structure(path)
    return VerifyReport(path, len(there), done, tuple(problems))


def _structure(path: Path) -> list[Problem]:
    """Open the folder as the runtime would, and return what it complains of."""
    try:
        ModelFolder.open(path)
    except MixqError as error:
        return [Problem(printable(path.name), error.message)]
    return []
