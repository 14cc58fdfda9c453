"""Flags that several commands share as a group, defined once.

Contract: a command declares a group as one keyword-only parameter, such as `runtime: options.Runtime`. Under
`takes_groups` typer sees the group's flags in its place, and the command receives one value made of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Group:
    """Marks a parameter as a group of flags: the parameters of `make`, which returns the value."""

    make: Callable[..., Any]

    def flags(self) -> Mapping[str, inspect.Parameter]:
        """Return the flags by name."""
        return inspect.signature(self.make, eval_str=True).parameters


def takes_groups(*, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator for a command with groups of flags.

    A flag that the command itself declares, or that two groups have, appears once and each group receives its value.

    Args:
        without: flags of the groups that this command does not have.
    """

    def decorate(command: Command) -> Command:
        declared = inspect.signature(command, eval_str=True).parameters
        groups = {name: group for name, each in declared.items() if (group := _group(each)) is not None}
        flags: dict[str, inspect.Parameter] = {}
        for name, parameter in declared.items():
            if name not in groups:
                flags[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                continue
            for flag, its_parameter in groups[name].flags().items():
                if flag not in declared and flag not in without:
                    flags.pop(flag, None)  # the last place is the one in --help
                    flags[flag] = its_parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

        @functools.wraps(command)
        def with_groups(**values: Any) -> None:
            arguments = {name: values[name] for name in declared.keys() - groups.keys()}
            for name, group in groups.items():
                arguments[name] = group.make(**{flag: values[flag] for flag in group.flags() if flag in values})
            command(**arguments)

        with_groups.__signature__ = inspect.Signature(list(flags.values()))  # type: ignore[attr-defined]
        with_groups.__annotations__ = {name: flag.annotation for name, flag in flags.items()}
        return with_groups

    return decorate


def _group(parameter: inspect.Parameter) -> Group | None:
    marks = getattr(parameter.annotation, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Group)), None)
