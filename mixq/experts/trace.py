"""Recorded routing: which experts each token used in each layer, and its file.

Contract: a trace is plain numbers. What `mixq trace` records has more (`mixq.plan.recording`), and is read here too.
A trace's own file is JSON lines: first an object that says what it is and how large, then for
each token a list of its layers' lists of experts, the router's favourite first. Reading checks every number; what is
not as it should be is an error that names the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.npz import is_zip

FORMAT = "mixq-trace"
VERSION = 1
_LONGEST_LINE = 1 << 20
_MOST = 4096  # layers, experts

Token = list[tuple[int, ...]]
"""For each layer the experts of one token."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Routing of a run.

    Attributes:
        layers, experts, active: of the model: every layer has `experts`, of which a token uses `active`.
        tokens: in the order in which they were run.
    """

    layers: int
    experts: int
    active: int
    tokens: list[Token]

    def of_layer(self, layer: int) -> list[tuple[int, ...]]:
        """Return the experts that one layer used, token by token."""
        return [token[layer] for token in self.tokens]

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: it cannot be written.
        """
        header = {
            "format": FORMAT,
            "version": VERSION,
            "layers": self.layers,
            "experts": self.experts,
            "active": self.active,
        }
        lines = (json.dumps(line, separators=(",", ":")) + "\n" for line in (header, *self.tokens))
        try:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise StorageError(f"{printable(path)} cannot be written: {error.strerror}.") from error

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a file; of a recording (`mixq.plan.recording`), its routing.

        Raises:
            ModelFileError: it is no trace, or a line is damaged.
            StorageError: it cannot be read.
        """
        try:
            with path.open("rb") as begin:
                zipped = is_zip(begin.read(2))
            if zipped:
                from mixq.plan.recording import Recording  # which is made of this module

                return Recording.read(path).routing()
            with path.open(encoding="utf-8") as file:
                lines = _parsed(file, path)
                layers, experts, active = _sizes(next(lines, (0, None))[1], path)
                tokens = [_token(line, layers, experts, active, f"{path}, line {number}") for number, line in lines]
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{printable(path)} is no trace: it is not UTF-8.") from error
        except OSError as error:
            raise StorageError(f"{printable(path)} cannot be read: {error.strerror}.") from error
        if not tokens:
            raise ModelFileError(f"{printable(path)} has no token.")
        return cls(layers, experts, active, tokens)


def _parsed(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), ""), 1):
        if len(line) > _LONGEST_LINE:
            raise ModelFileError(f"{printable(path)}, line {number} is longer than {_LONGEST_LINE} characters.")
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
            raise ModelFileError(f"{printable(path)}, line {number} is not JSON.") from error


def _sizes(header: object, path: Path) -> tuple[int, int, int]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelFileError(f"{printable(path)} is no trace of routing: its first line does not say {FORMAT!r}.")
    if header.get("version") != VERSION:
        raise ModelFileError(f"{printable(path)} is of version {printable(header.get('version'))}, not {VERSION}.")
    sizes = [header.get(name) for name in ("layers", "experts", "active")]
    layers, experts, active = (size if type(size) is int and 1 <= size <= _MOST else 0 for size in sizes)
    if not (layers and experts and active) or active > experts:
        raise ModelFileError(f"{printable(path)}: layers, experts and active are {printable(sizes)}.")
    return layers, experts, active


def _token(line: object, layers: int, experts: int, active: int, where: str) -> Token:
    chosen = line if isinstance(line, list) else []
    if len(chosen) == layers and all(_is_choice(choice, experts, active) for choice in chosen):
        return [tuple(choice) for choice in chosen]
    raise ModelFileError(
        f"{printable(where)} is not {layers} lists of {active} different experts from 0 to {experts - 1}."
    )


def _is_choice(choice: object, experts: int, active: int) -> bool:
    if not isinstance(choice, list) or not all(type(expert) is int and 0 <= expert < experts for expert in choice):
        return False
    return len(choice) == len(set(choice)) == active
