"""config.toml: the user's defaults for the shared flags.

Contract: a flag comes first, then its environment variable, then the file, then the program's default. Only a
`ModelCommand` reads the file, and only for a value that neither flag nor environment gives; `--help` and the commands
that run no model work whatever the file says. An unknown key, or a value of the wrong type, is an error that names the
file, so that a misspelt setting is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import typer.core

from mixq.cli import options
from mixq.cli.flag_groups import Group
from mixq.errors import Fields, StorageError, UsageError, printable
from mixq.system import paths


def _types(group: Callable[..., Any]) -> dict[str, type]:
    """Return the type of each flag of a group that the environment can set."""
    annotations = {name: get_args(flag.annotation) for name, flag in Group(group).flags().items()}
    return {name: (get_args(kind) or (kind,))[0] for name, (kind, option) in annotations.items() if option.envvar}


KINDS = {"model": str, "system": str, "history": bool, "plain": bool}
KINDS |= _types(options.runtime_options) | _types(options.SamplingFlags)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a config.toml, {} where there is none.

    Raises:
        UsageError: not TOML, an unknown key, or a value of the wrong kind.
        StorageError: the file exists and cannot be read.
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
    fields = Fields(settings, f"{printable(path)}: ", UsageError)
    fields.only(KINDS)
    read: dict[type, Callable[[str], object]] = {
        str: fields.text,
        int: fields.integer,
        float: fields.number,
        bool: fields.boolean,
    }
    return {key: read[KINDS[key]](key) for key in settings}


class _FileDefaults(Mapping[str, Any]):
    """The settings, read on first use."""

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
    """A command that loads a model; config.toml can set the defaults of its flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as typer does, with the settings as defaults."""
        ctx.default_map = _FileDefaults()
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """Return the help with the program's defaults, without reading the file."""
        ctx.default_map = None
        return super().get_help(ctx)
