"""The folder that a job writes into: which job it belongs to, disk space, and the leftovers of an interrupted job.

Contract: `Target` refuses every folder that is not empty and was not started or finished by the same job; it never
removes a file that is not a shard of this job.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, UsageError, printable
from mixq.formats import lock
from mixq.formats.atomic import partial_path, storage_error
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.formats.manifest import Manifest
from mixq.formats.shards import INDEX
from mixq.quantize import journal as journals
from mixq.quantize.journal import Journal
from mixq.quantize.sources.place import reading
from mixq.quantize.sources.source import CONFIG, SIDE_FILES

BEFORE_THE_JOURNAL = {lock.FILE_NAME, partial_path(Path(journals.FILE_NAME)).name}
"""Files that a job killed before its first journal may leave behind."""

RECORD_BYTES = 512
"""Most bytes of job.json or mixq.json per linear layer or file."""


class Target:
    """The target folder of one job.

    Args:
        path: the folder; it need not exist.
        settings, origin: of the job; a folder of another job is refused.
        sizes: bytes by file name of every shard.
        state_size: bytes of a calibration's state, which is next to the shards until the job is finished; 0 without
            one.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        origin: Mapping[str, Any],
        sizes: Mapping[str, int],
        state_size: int = 0,
    ) -> None:
        self.path = path
        self.settings = settings
        self.origin = origin
        self.sizes = sizes
        self.state_size = state_size

    def look(self, source: Path | None) -> Journal | None:
        """Return the journal of the unfinished job in the folder, if there is one.

        Raises:
            UsageError: a file, the source, a folder with other content, or a job with other settings.
            ModelFileError: the journal or mixq.json is damaged.
            StorageError: the folder cannot be read.
        """
        with reading(self.path):
            return self._look(source)

    def _look(self, source: Path | None) -> Journal | None:
        shown = printable(self.path)
        if self.path.is_file():
            raise UsageError(f"the target {shown} is a file.", hint="Choose a folder that does not exist.")
        if not self.path.is_dir():
            return None
        if source is not None and self.path.resolve() == source.resolve():
            raise UsageError("source and target are the same folder.", hint="Choose another target folder.")
        journal = Journal.read(self.path)
        begun = journal or (Manifest.read(self.path) if self.is_finished() else None)
        if begun is not None:
            journals.refuse_other_job(begun, self.settings, self.origin, self.path)
            return journal
        foreign = sorted(set(os.listdir(self.path)) - BEFORE_THE_JOURNAL)
        if foreign:
            raise UsageError(
                f"the target {shown} is not empty ({printable(foreign[0])}) and was not started by mixq quantize.",
                hint="Choose an empty folder, or one that does not exist.",
            )
        return None

    def is_finished(self) -> bool:
        """Whether a job has finished here."""
        return (self.path / MANIFEST).exists() and not (self.path / journals.FILE_NAME).exists()

    def finished_manifest(self) -> Manifest:
        """Return mixq.json of a finished folder, and remove partial files of a killed job.

        The job compares the side files.

        Raises:
            ModelFileError: the index, config.json or a shard is missing, or a shard's size has changed.
        """
        manifest = Manifest.read(self.path)
        self._remove_partials()
        for name in (*self.sizes, INDEX, CONFIG):
            path, wanted = self.path / name, self.sizes.get(name)
            if not path.is_file():
                what = f"{printable(name)} is missing now"
            elif wanted is not None and (size := path.stat().st_size) != wanted:
                what = f"{printable(name)} has {size:,} bytes now instead of {wanted:,}"
            else:
                continue
            raise ModelFileError(
                f"{printable(self.path)} was finished before, but {what}.",
                hint="mixq verify lists every damaged file. To repair the folder, delete it and quantize again.",
            )
        return manifest

    def clean(self, journal: Journal) -> list[str]:
        """Remove shards that differ from the journal's or are not in it, and return notices.

        Partial files are removed too: most are written again, but not a side file that the source no longer has.
        """
        notices: list[str] = []
        self._remove_partials()
        for name, size in self.sizes.items():
            path, known = self.path / name, journal.shards.get(name)
            try:
                whole = known and path.is_file() and path.stat().st_size == size and sha256_of(path) == known.sha256
            except OSError as error:
                raise storage_error(path, error) from error
            if not whole:
                remove(path)
            if known and not whole:
                del journal.shards[name]
                notices.append(f"{name} is missing or damaged and will be written again.")
        self.remove_states(journal.state)
        found = f"resuming an interrupted job: {len(journal.shards)} of {len(self.sizes)} shards are finished."
        return [found, *notices]

    def _remove_partials(self) -> None:
        """Remove half-written files, by the names that a job writes."""
        for name in (*self.sizes, *SIDE_FILES, INDEX, MANIFEST, CONFIG, journals.FILE_NAME):
            remove(partial_path(self.path / name))

    def forget(self, journal: Journal) -> None:
        """Remove the finished shards and all states: the job begins again."""
        for name in self.sizes:  # the journal's names alone are not trusted
            if name in journal.shards:
                remove(self.path / name)
        journal.shards.clear()
        journal.state.clear()
        self.remove_states()

    def state_path(self, layer: int) -> Path:
        """Return the path of a calibration's state at the beginning of a layer."""
        return self.path / f"calibration-{layer:05d}.safetensors"

    def remove_states(self, but: Collection[str] = ()) -> None:
        """Remove the states of calibrations except those of these names."""
        if self.state_size:
            for path in self.path.glob("calibration-*.safetensors*"):
                if path.name not in but:
                    remove(path)

    def disk_needed(self, journal: Journal | None, others: int, records: int) -> int:
        """Return the bytes still to be written, less those of files that are replaced.

        Args:
            others: bytes of the files beside the shards.
            records: linear layers and files that job.json and mixq.json list.
        """
        todo = {name: size for name, size in self.sizes.items() if journal is None or name not in journal.shards}
        leftovers = [path for name in todo for path in (self.path / name, partial_path(self.path / name))]
        freed = sum(path.stat().st_size for path in leftovers if path.is_file())
        # While they are replaced, both records and a calibration's state exist twice.
        return sum(todo.values()) + others + 4 * RECORD_BYTES * records + 2 * self.state_size - freed

    def make(self) -> None:
        """Make the folder; raises StorageError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, error) from error


def remove(path: Path) -> None:
    """Remove a file, where it exists; raises StorageError."""
    try:
        if os.path.lexists(path):
            path.unlink()
    except OSError as error:
        raise storage_error(path, error) from error


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
