"""Loads the model of a command.

Contract: without MODEL it is the demo model, which is quantized into the user's cache on first use, completely or not
at all; two processes may do this at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mixq.cli import output
from mixq.errors import ModelFileError, StorageError, printable
from mixq.system import paths

if TYPE_CHECKING:
    from mixq.config import RuntimeOptions
    from mixq.engine.model import Model


STALE = 24 * 3600  # seconds; quantizing the demo model takes less


def load_model(name: str | None, runtime: RuntimeOptions) -> Model:
    """Return the model that `name` means, a folder or a name in the store; None is the demo model.

    Shows the progress of a load of more than a second in a terminal. Warns about options that could not be used.
    """
    from mixq.engine.model import Model
    from mixq.engine.progress import choose_progress

    folder = quantized_demo() if name is None else paths.resolve_model(name)
    progress = choose_progress(output.talk().is_terminal, folder.name)
    try:
        model = Model(folder, runtime, progress=progress)
    except BaseException:
        progress("", 0.0)  # ends the line
        raise
    for line in model.notes:
        output.warn(line)
    return model


def quantized_demo() -> Path:
    """Return the demo model's nl4 folder in the user's cache; quantize it first if it is missing."""
    source = paths.demo_source()
    if not (source / "config.json").is_file():
        raise ModelFileError(
            "This installation has no demo model.", hint="Name a MODEL: a folder, or a name in the store."
        )
    from mixq.formats.manifest import FORMAT_VERSION

    folder = paths.cache() / "demo" / f"{_fingerprint(source)}-v{FORMAT_VERSION}-nl4"
    if not (folder / "mixq.json").is_file():
        _make(source, folder)
    return folder


def _fingerprint(source: Path) -> str:
    """Return a digest of the files' names and bytes, so that another demo model is another folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _make(source: Path, folder: Path) -> None:
    from mixq.cli.quantize import run_job
    from mixq.quantize.job import Job

    output.note("First use: quantizing the demo model.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise StorageError(
            f"The cache cannot be written: {printable(error.filename)}: {error.strerror}.",
            hint="Set MIXQ_HOME to a folder that you can write to.",
        ) from error
    try:
        run_job(Job(source, partial / folder.name))
        # A rename is atomic. It fails if another process was first; its folder is then used.
        with contextlib.suppress(OSError):
            os.rename(partial / folder.name, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if not (folder / "mixq.json").is_file():
        raise StorageError(
            f"The demo model could not be stored in {printable(folder)}.",
            hint="If the folder exists, it is incomplete: delete it, and run the command again.",
        )


def _remove_stale(folder: Path) -> None:
    """Remove unfinished models of killed processes; newer ones may belong to a process that is running."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE:
                shutil.rmtree(partial)
