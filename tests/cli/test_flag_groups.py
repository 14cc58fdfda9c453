"""Groups of flags: in a command's place, once each, and what the command receives."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import typer

from mixq.cli.flag_groups import Group, takes_groups
from mixq.config import RuntimeOptions


@dataclass(frozen=True, slots=True)
class Sizes:
    """A group."""

    width: Annotated[int, typer.Option("--width")] = 1
    seed: Annotated[int | None, typer.Option("--seed")] = None


def colours(
    hue: Annotated[str, typer.Option("--hue")] = "red",
    shade: Annotated[float, typer.Option("--shade")] = 0.5,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
) -> tuple[str, float, int | None]:
    """Another group, with a flag of the first."""
    return hue, shade, seed


received: list[object] = []


@takes_groups(without=("shade",))
def paint(
    name: str,
    *,
    sizes: Annotated[Sizes, Group(Sizes)],
    quiet: bool = False,
    colour: Annotated[tuple[str, float, int | None], Group(colours)],
) -> None:
    """Paint."""
    received[:] = [name, sizes, quiet, colour]


@takes_groups()
def own(*, width: int = 7, sizes: Annotated[Sizes, Group(Sizes)]) -> None:
    """Declare a flag of a group, with another default."""
    received[:] = [width, sizes]


def test_flags_of_groups_are_in_their_place_and_once() -> None:
    assert list(inspect.signature(paint).parameters) == ["name", "width", "quiet", "hue", "seed"]
    assert paint.__doc__ == "Paint."


def test_a_command_receives_what_the_groups_make_of_the_flags() -> None:
    paint(name="a", width=2, quiet=True, hue="blue", seed=3)
    assert received == ["a", Sizes(2, 3), True, ("blue", 0.5, 3)]


def test_a_flag_of_the_commands_own_is_given_to_the_group_too() -> None:
    assert inspect.signature(own).parameters["width"].default == 7
    own(width=7, seed=None)
    assert received == [7, Sizes(7)]


def test_the_flags_of_a_model_have_the_defaults_of_its_options() -> None:
    from mixq.cli.options import runtime_options

    assert runtime_options() == RuntimeOptions()
