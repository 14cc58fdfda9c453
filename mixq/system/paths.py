"""Where things lie on a user's machine: the model store, the cache and the shipped demo model.

Contract: `resolve_model` turns what a user typed (a folder, a name in the store, or nothing) into a folder. This module
creates nothing and opens no model. What only some paths need is imported where it is used: every command starts here.
"""

from __future__ import annotations

import os
from pathlib import Path

from mixq.errors import ModelFileError, printable


def expand(path: str) -> Path:
    """Return a path with ~ filled in; one of an unknown user stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def home() -> Path:
    """Return the folder of mixq's data: $MIXQ_HOME, else the platform's data folder."""
    import platformdirs

    override = os.environ.get("MIXQ_HOME")
    return expand(override) if override else Path(platformdirs.user_data_dir("mixq", appauthor=False))


def cache() -> Path:
    """Return the folder of what can be made again: $MIXQ_HOME/cache, else the platform's cache folder."""
    import platformdirs

    override = os.environ.get("MIXQ_HOME")
    return expand(override) / "cache" if override else Path(platformdirs.user_cache_dir("mixq", appauthor=False))


def config_file() -> Path:
    """Return the file of the user's settings: $MIXQ_HOME/config.toml, else in the platform's config folder."""
    import platformdirs

    override = os.environ.get("MIXQ_HOME")
    folder = expand(override) if override else Path(platformdirs.user_config_dir("mixq", appauthor=False))
    return folder / "config.toml"


def store() -> Path:
    """Return the model store: one folder per model name."""
    return home() / "models"


def demo_source() -> Path:
    """Return the shipped, unquantized demo model."""
    from importlib import resources

    return Path(str(resources.files("mixq.models"))) / "demo"


def resolve_model(name: str) -> Path:
    """Return the folder that `name` means: a path that exists, or the name of a model in the store.

    Raises:
        ModelFileError: neither exists, and the message names both places; or a job has not finished the model.
    """
    as_path = expand(name)
    if name and as_path.is_dir():
        return as_path
    in_store = store() / name
    if name and Path(name).name == name and name not in (".", "..") and in_store.is_dir():
        if (in_store / "job.json").exists() and not (in_store / "config.json").exists():
            raise ModelFileError(
                f"{printable(name)} is not finished: a quantize job was interrupted there, or is at work.",
                hint="`mixq list` shows how far it is and what goes on with it.",
            )
        return in_store
    what = "is a file, not a model folder" if as_path.is_file() else "is neither a folder nor a model in the store"
    raise ModelFileError(
        f"{printable(name)!r} {what}.",
        hint=f"`mixq list` shows the models in the store, which are folders under {printable(store())}.",
    )
