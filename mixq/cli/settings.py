"""The config file: defaults of the shared flags, below the environment and above the program's own.

Contract: only a `ModelCommand` reads the file, and only for a value that neither flag nor environment gives; `--help`
and the commands that run no model work whatever the file says. `read_settings` returns the checked content of
config.toml, or nothing where there is no such file. A key that mixq does not know, or a value of the wrong kind, is an
error that names the file: a misspelt setting must not be silently without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import typer.core

from mixq.config import did_you_mean
from mixq.errors import StorageError, UsageError, printable
from mixq.system import paths

KINDS: dict[str, type] = {
    "model": str,
    "device": str,
    "vram": str,
    "ram": str,
    "context": int,
    "threads": int,
    "kv": str,
    "miss": str,
    "cache_policy": str,
    "quota": str,
    "template": str,
    "history": bool,
    "plain": bool,
    "seed": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "max_tokens": int,
    "system": str,
}
_KIND_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a config.toml, {} where there is none.

    Raises:
        UsageError: not TOML, an unknown key, or a value of the wrong kind.
        StorageError: the file is there and cannot be read.
    """
    if not path.exists():
        return {}
    import tomllib

    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{printable(path)} is not TOML: {printable(error)}.") from error
    for key, value in settings.items():
        kind = KINDS.get(key)
        if kind is None:
            raise UsageError(f"{printable(path)}: unknown key {printable(repr(key))}." + did_you_mean(key, KINDS))
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{printable(path)}: {key} is {printable(repr(value))}; it must be {_KIND_NAMES[kind]}.")
    return settings


class _FileDefaults(Mapping[str, Any]):
    """The settings, read when one is first asked for."""

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return read_settings(paths.config_file())

    def __getitem__(self, key: str) -> Any:
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


class ModelCommand(typer.core.TyperCommand):
    """A command that loads a model: config.toml has defaults of its flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as typer does, below the flags the settings."""
        ctx.default_map = _FileDefaults()
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """Return the help with the program's own defaults, also where the file is wrong."""
        ctx.default_map = None
        return super().get_help(ctx)
