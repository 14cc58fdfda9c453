"""The folder that a job writes into: whose it is, whether there is room, and what an interrupted job left in it.

Contract: `Target` refuses every folder that is not empty, not begun by the same job and not finished by it; it never
removes a file that is not a shard of this job. It knows neither weights nor schemes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.formats import lock
from mixq.formats.atomic import partial_path, storage_error
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.formats.manifest import Manifest
from mixq.formats.shards import INDEX
from mixq.quantize import journal as journals
from mixq.quantize.journal import Journal
from mixq.quantize.sources.huggingface import CONFIG, SIDE_FILES

BEFORE_THE_JOURNAL = {lock.FILE_NAME, partial_path(Path(journals.FILE_NAME)).name}
"""What a job that was killed before it wrote its first journal may leave behind."""

RECORD_BYTES = 512
"""At most what job.json or mixq.json says of one Linear or file."""


class Target:
    """The target folder of one job.

    Args:
        path: the folder; it need not exist.
        settings, origin: what the job is and what it is made from; a folder of another job is refused.
        sizes: bytes by file name of every shard.
        state_size: bytes of a calibration's state, which lies beside the shards until the job is done; 0 without one.
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
            UsageError: a file, the source itself, somebody else's folder, or a job with other settings.
            ModelFileError: a journal or mixq.json that is damaged.
            StorageError: the folder cannot be read.
        """
        try:
            return self._look(source)
        except OSError as error:
            raise StorageError(f"{printable(self.path)} cannot be read: {printable(error)}.") from error

    def _look(self, source: Path | None) -> Journal | None:
        shown = printable(self.path)
        if self.path.is_file():
            raise UsageError(f"the target {shown} is a file.", hint="Name a folder that does not exist yet.")
        if not self.path.is_dir():
            return None
        if source is not None and self.path.resolve() == source.resolve():
            raise UsageError("source and target are the same folder.", hint="Name another folder for the result.")
        journal = Journal.read(self.path)
        if journal is not None:
            journals.refuse_other_job((journal.settings, journal.source), (self.settings, self.origin), self.path)
            return journal
        if self.is_finished():
            manifest = Manifest.read(self.path)
            journals.refuse_other_job((manifest.settings, manifest.source), (self.settings, self.origin), self.path)
            return None
        foreign = sorted(set(os.listdir(self.path)) - BEFORE_THE_JOURNAL)
        if foreign:
            raise UsageError(
                f"the target {shown} is not empty ({printable(foreign[0])}) and was not begun by mixq quantize.",
                hint="Name an empty folder, or one that does not exist yet.",
            )
        return None

    def is_finished(self) -> bool:
        """Whether a job has finished here."""
        return (self.path / MANIFEST).exists() and not (self.path / journals.FILE_NAME).exists()

    def finished_manifest(self) -> Manifest:
        """Return mixq.json of a finished folder; its side files are the job's to compare.

        What a killed job had half written goes away.

        Raises:
            ModelFileError: the index, config.json or a shard is gone, or a shard has not the size it was made with.
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
                f"{printable(self.path)} was finished once, but {what}.",
                hint="mixq verify names every damaged file; to repair it, delete the folder and quantize again.",
            )
        return manifest

    def clean(self, journal: Journal) -> list[str]:
        """Remove shards that are not as the journal has them, or not in it, and say what was found.

        Files half written go too: most are begun anew, but a side file that the source has lost since is not.
        """
        notices: list[str] = []
        self._remove_partials()
        for name, size in self.sizes.items():
            path, known = self.path / name, journal.shards.get(name)
            try:
                if known is None:
                    path.unlink(missing_ok=True)
                elif not path.is_file() or path.stat().st_size != size or _sha256(path) != known.sha256:
                    del journal.shards[name]
                    path.unlink(missing_ok=True)
                    notices.append(f"{name} is missing or damaged and is made again.")
            except OSError as error:
                raise storage_error(path, error) from error
        self.remove_states(journal.state)
        there = f"going on with an interrupted job: {len(journal.shards)} of {len(self.sizes)} shards are there."
        return [there, *notices]

    def _remove_partials(self) -> None:
        """Remove what a killed job had half written, by the names that a job writes."""
        for name in (*self.sizes, *SIDE_FILES, INDEX, MANIFEST, CONFIG, journals.FILE_NAME):
            partial = partial_path(self.path / name)
            try:
                if partial.exists():
                    partial.unlink()
            except OSError as error:
                raise storage_error(partial, error) from error

    def forget(self, journal: Journal) -> None:
        """Remove the finished shards and all states: the job begins again."""
        try:
            for name in self.sizes:  # never by the journal's word alone
                if name in journal.shards:
                    (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.path, error) from error
        journal.shards.clear()
        journal.state.clear()
        self.remove_states()

    def state_path(self, layer: int) -> Path:
        """Return where a calibration's state at the beginning of a layer lies."""
        return self.path / f"calibration-{layer:05d}.safetensors"

    def remove_states(self, but: Collection[str] = ()) -> None:
        """Remove the states of calibrations but those of these names."""
        if not self.state_size:
            return
        try:
            for path in self.path.glob("calibration-*.safetensors*"):
                if path.name not in but:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(self.path, error) from error

    def disk_needed(self, journal: Journal | None, others: int, records: int) -> int:
        """Return the bytes still to be written, less what is there already or goes away first.

        Args:
            others: bytes of the files beside the shards.
            records: Linears and files that job.json and mixq.json list.
        """
        todo = {name: size for name, size in self.sizes.items() if journal is None or name not in journal.shards}
        leftovers = [path for name in todo for path in (self.path / name, partial_path(self.path / name))]
        freed = sum(path.stat().st_size for path in leftovers if path.is_file())
        # Both records stand there once old and once new while they are replaced.
        # And so do a calibration's states.
        return sum(todo.values()) + others + 4 * RECORD_BYTES * records + 2 * self.state_size - freed

    def make(self) -> None:
        """Make the folder; raises StorageError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, error) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
