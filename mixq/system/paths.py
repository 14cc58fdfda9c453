"""Paths on a user's computer: model store, cache, config.toml, demo model; free disk space.

Contract: `resolve_model` returns the folder for a path or a name in the store. This module creates nothing and opens no
model. Every command imports it, so what only some functions need is imported in them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mixq.errors import ModelFileError, StorageError, printable

if TYPE_CHECKING:
    from platformdirs import PlatformDirs


def expand(path: str) -> Path:
    """Return a path with ~ expanded; ~name of an unknown user is left unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def home() -> Path:
    """Return the folder of mixq's data: $MIXQ_HOME, else the platform's data folder."""
    return _chosen_home() or _platform_dirs().user_data_path


def cache() -> Path:
    """Return the folder of files that mixq can create again: $MIXQ_HOME/cache, else the platform's cache folder."""
    chosen = _chosen_home()
    return chosen / "cache" if chosen else _platform_dirs().user_cache_path


def config_file() -> Path:
    """Return the file of the user's settings: $MIXQ_HOME/config.toml, else in the platform's config folder."""
    return (_chosen_home() or _platform_dirs().user_config_path) / "config.toml"


def _chosen_home() -> Path | None:
    chosen = os.environ.get("MIXQ_HOME")
    return expand(chosen) if chosen else None


def _platform_dirs() -> PlatformDirs:
    from platformdirs import PlatformDirs

    return PlatformDirs("mixq", appauthor=False)


def store() -> Path:
    """Return the model store: one folder per model name."""
    return home() / "models"


def demo_source() -> Path:
    """Return the shipped, unquantized demo model."""
    from importlib import resources

    return Path(str(resources.files("mixq.models"))) / "demo"


def resolve_model(name: str) -> Path:
    """Return the folder for `name`: an existing folder, or a model in the store.

    Raises:
        ModelFileError: there is neither, or the model is unfinished.
    """
    as_path = expand(name)
    if name and as_path.is_dir():
        return as_path
    in_store = store() / name
    if name and Path(name).name == name and name not in (".", "..") and in_store.is_dir():
        if (in_store / "job.json").exists() and not (in_store / "config.json").exists():
            raise ModelFileError(
                f"{printable(name)} is not finished: its quantize job was interrupted or is running.",
                hint="`mixq list` prints its progress and the command that resumes it.",
            )
        return in_store
    what = "is a file, not a model folder" if as_path.is_file() else "is neither a folder nor a model in the store"
    raise ModelFileError(
        f"{printable(name)!r} {what}.",
        hint=f"`mixq list` prints the models in the store ({printable(store())}).",
    )


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder around it that exists."""
    place = path.absolute()
    return next(each for each in (place, *place.parents) if each.exists())


def free_space(path: Path) -> int:
    """Return the free bytes of the disk of `path`, which need not exist.

    Raises:
        StorageError: the disk cannot be read.
    """
    import shutil

    try:
        return shutil.disk_usage(existing(path)).free
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {printable(error)}.") from error


def check_free_space(path: Path, needed: int, hint: str = "Free some space, or choose another disk.") -> None:
    """Raise StorageError, with exact bytes, if the disk of `path` has less than `needed` free."""
    free = free_space(path)
    if needed > free:
        raise StorageError(
            f"{printable(path)} needs {needed:,} bytes, but only {free:,} are free: {needed - free:,} bytes are "
            "missing.",
            hint=hint,
        )
