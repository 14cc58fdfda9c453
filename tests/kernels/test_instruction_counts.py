"""How many instructions the decode loop takes for 64 bytes of nibbles, read from the compiled library.

Decode is limited by memory only as long as the loop takes few instructions. The limits are what gcc 12 makes of it,
plus a little room; libraries of other compilers are not tested.
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest

from mixq.kernels import native_library

LINES_OF_A_TURN = 4  # of 64 bytes
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(?:\{vex\} )?(\S+)\s*(.*)$")
_TARGET = re.compile(r"([0-9a-f]+) <")

Body = list[str]

pytestmark = pytest.mark.skipif(
    shutil.which("objdump") is None or not native_library.compiler().startswith("gcc 12"),
    reason="needs objdump and a library built by gcc 12",
)


@cache
def loops(space: str) -> list[Body]:
    """Return the mnemonics of each loop in the products of few rows of one instruction set; inner ones first."""
    path = native_library.library()._name
    said = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    )
    return sorted(_loops(said.stdout, re.compile(rf"mixq::{space}::.*multiply(?!.*Panel)")), key=len)


def _loops(assembly: str, wanted: re.Pattern[str]) -> Iterator[Body]:
    code: list[tuple[int, str, str]] = []
    inside = False
    for line in [*assembly.splitlines(), "0 <end>:"]:
        if (function := _FUNCTION.match(line)) is not None:
            places = {address: i for i, (address, _, _) in enumerate(code)}
            for i, (_, name, target) in enumerate(code):
                jump = _TARGET.match(target) if name.startswith("j") else None
                begin = i + 1 if jump is None else places.get(int(jump[1], 16), i + 1)
                if begin <= i:
                    yield [name for _, name, _ in code[begin : i + 1]]
            code, inside = [], wanted.search(function[1]) is not None
        elif inside and (found := _INSTRUCTION.match(line)) is not None:
            code.append((int(found[1], 16), found[2], found[3]))


def turn_loop(space: str, lookups: int, dot: str) -> collections.Counter[str]:
    """Return the shortest loop over turns of 256 bytes with prefetches: one row of weights, one of activations."""
    for body in loops(space):
        counts = collections.Counter(body)
        if counts["vpshufb"] == counts[dot] == lookups and counts["prefetcht1"] >= LINES_OF_A_TURN:
            return counts
    raise AssertionError(f"{space} has no loop with {lookups} lookups, as many {dot}, and prefetches")


@pytest.mark.parametrize(
    ("space", "lookups", "dot", "vectors", "all_of_them"),
    [
        ("avx2", 16, "vpmaddubsw", 36, 54),
        ("avx_vnni", 16, "vpdpbusd", 25, 41),
        ("avx512", 8, "vpdpbusd", 13, 26),
    ],
)
def test_instructions_for_64_bytes(space: str, lookups: int, dot: str, vectors: int, all_of_them: int) -> None:
    counts = turn_loop(space, lookups, dot)
    print(f"{space}: {counts}")
    assert sum(n for name, n in counts.items() if name.startswith("v")) <= vectors * LINES_OF_A_TURN
    assert counts.total() <= all_of_them * LINES_OF_A_TURN
