"""What peers.py compares: the sides, the states in which they are compared, and how a side is started.

Contract: a side is a worker's module with arguments (see `worker`); a `Mode` names sides and measures, and what differs
from the plain comparison: threads, instruction set, a busy process beside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mixq.config import format_size
from mixq.system.memory import available_memory
from tests.bench.worker import SideError, Worker

LLAMA, MIXQ, TORCH = (f"tests.bench.{name}_side" for name in ("llama_cpp", "mixq", "torch_int4"))


@dataclass(frozen=True, slots=True)
class Side:
    """What can be compared: the worker's module and its arguments."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        """mixq loads its weights from a model folder."""
        return self.module == MIXQ and "--folder" in self.arguments


SIDES = {
    "mixq": Side("mixq, default mix", MIXQ, ("--mix", "default")),
    "mixq-nl4": Side("mixq, nl4 throughout", MIXQ, ("--mix", "all-nl4")),
    "mixq-folder": Side("mixq, default mix, a folder", MIXQ, ("--mix", "default", "--folder")),
    "mixq-nl4-folder": Side("mixq, nl4 throughout, a folder", MIXQ, ("--mix", "all-nl4", "--folder")),
    "llama": Side("llama.cpp, Q4_0", LLAMA, ("--recipe", "q4_0-pure")),
    "llama-q4_k_m": Side("llama.cpp, Q4_K_M", LLAMA, ("--recipe", "q4_k_m")),
    "llama-iq4_xs": Side("llama.cpp, IQ4_XS", LLAMA, ("--recipe", "iq4_xs")),
    "llama-q4_0": Side("llama.cpp, Q4_0 with Q8_0 and Q6_K, as llama-quantize makes it", LLAMA, ("--recipe", "q4_0")),
    "llama-q4_k_s": Side("llama.cpp, Q4_K_S", LLAMA, ("--recipe", "q4_k_s")),
    "torch": Side("torch, int4 operator", TORCH),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """What a turn asks of a side, see `worker`: "decode" or "prefill" of some tokens; "load" starts it anew."""

    title: str
    what: str
    tokens: int


MEASURES = {
    "decode": Measure("decode", "decode", 16),
    "prompt-512": Measure("prompt of 512", "prefill", 512),
    "prompt-128": Measure("prompt of 128", "prefill", 128),
    "first-token": Measure("load and first token", "load", 1),
}


@dataclass(frozen=True, slots=True)
class Mode:
    """A state in which sides are compared."""

    title: str
    suffix: str  # of the sides' names in the tables
    sides: tuple[str, ...]
    measures: tuple[str, ...]
    threads: int | None = None  # None: --threads
    avx2: bool = False  # both programs use AVX2 at most
    busy: bool = False  # a process beside them that never sleeps, at the same priority
    mapped: bool = False  # llama.cpp maps its file, as by default; else it reads it into memory

    @property
    def in_turns(self) -> bool:
        """The sides stay loaded while they take turns."""
        return "first-token" not in self.measures


_SIDES = ("mixq", "mixq-nl4", "llama", "llama-q4_k_m", "llama-iq4_xs")
_PROMPTS = ("decode", "prompt-512", "prompt-128")
MODES = {
    "all": Mode("Every core", "", _SIDES, _PROMPTS),
    "avx2": Mode("AVX2 on both sides", ", AVX2", ("mixq-nl4", "llama"), _PROMPTS, avx2=True),
    "one-thread": Mode("One thread", ", one thread", _SIDES, ("decode",), threads=1),
    "busy": Mode("Beside a busy process", ", beside a busy process", _SIDES[:3], ("decode",), busy=True),
    "folder": Mode("A folder and memory", "", ("mixq-nl4-folder", "mixq-nl4"), ("decode",)),
    "first-token": Mode("From start to first token", "", ("mixq-nl4-folder", "llama"), ("first-token",), mapped=True),
}

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For llama.cpp: its weights are allocated by malloc, which does not ask for huge pages by itself."""

AVX2 = {"MIXQ_CPU_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""For mixq: its kernels, and torch's that it calls."""

LAYER_BYTES, OUTSIDE_BYTES = 900_000_000, 400_000_000
"""Upper bounds of a side's memory for each layer and for the rest, in the largest format compared."""


def chosen(arguments: argparse.Namespace) -> Mode:
    """Return the mode as the arguments change it."""
    mode = MODES[arguments.mode]
    sides = tuple(arguments.sides or mode.sides)
    if arguments.folder_side:
        sides = tuple(dict.fromkeys(f"{name}-folder" if f"{name}-folder" in SIDES else name for name in sides))
    return replace(mode, sides=sides, measures=tuple(arguments.measures or mode.measures))


def threads_of(mode: Mode, arguments: argparse.Namespace) -> int:
    """Return the threads of each side."""
    return mode.threads or int(arguments.threads)


def start(name: str, mode: Mode, arguments: argparse.Namespace, folder: Path, log: BinaryIO) -> Worker:
    """Start a side; `folder` keeps its weights between two starts, if it has files."""
    side = SIDES[name]
    own = ["--layers", str(arguments.layers), "--threads", str(threads_of(mode, arguments))]
    environment = dict(HUGE_PAGES)
    python = sys.executable
    if side.module == LLAMA:
        python = llama_python(mode, arguments)
        own += ["--file", str(folder / f"{name}.gguf")]
        if mode.mapped or arguments.folder_side:
            own.append("--mapped")
    elif mode.avx2:
        environment |= AVX2
    sides = [str(folder / name) if argument == "--folder" else argument for argument in side.arguments]
    if side.is_folder:
        sides.insert(sides.index(str(folder / name)), "--folder")
    return Worker(python, side.module, [*sides, *own], log, environment)


def llama_python(mode: Mode, arguments: argparse.Namespace) -> str:
    """Return the interpreter with the build of llama.cpp for a mode."""
    return str(arguments.llama_python_avx2 if mode.avx2 else arguments.llama_python)


def check(mode: Mode, arguments: argparse.Namespace) -> None:
    """Refuse what cannot be run, before anything is made.

    Raises:
        SideError: llama-cpp-python is missing, there is too little memory for all sides at once, or "first-token" is
            measured together with something else.
    """
    if not mode.in_turns and len(mode.measures) > 1:
        raise SideError("first-token starts each side anew, so it is measured by itself: --measures first-token")
    if any(SIDES[name].module == LLAMA for name in mode.sides):
        _check_llama(mode, arguments)
    free = available_memory()
    each = arguments.layers * LAYER_BYTES + OUTSIDE_BYTES
    needed = each * (len(mode.sides) if mode.in_turns else 1)
    if free is not None and needed > free:
        raise SideError(
            f"{len(mode.sides)} sides with {arguments.layers} layers need up to {format_size(needed)} of memory; "
            f"{format_size(free)} are free. Name fewer with --sides, or use fewer --layers."
        )


def _check_llama(mode: Mode, arguments: argparse.Namespace) -> None:
    option = "--llama-python-avx2" if mode.avx2 else "--llama-python"
    python = llama_python(mode, arguments)
    code = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in ('llama_cpp', 'gguf')))"
    try:
        found = subprocess.run([python, "-c", code], check=False).returncode == 0
    except OSError as error:
        raise SideError(f"{option} {python}: {error.strerror}") from None
    if not found:
        raise SideError(
            f"llama-cpp-python or gguf is missing in {python}. Build it for this CPU (minutes):\n"
            f"    {AVX2_BUILD if mode.avx2 else NATIVE_BUILD} {python} -m pip install gguf llama-cpp-python\n"
            f"or name an interpreter that has both: {option} PYTHON; or leave it out: "
            "--sides mixq,mixq-nl4,torch"
        )


NATIVE_BUILD = "CXXFLAGS=-fno-dse CMAKE_ARGS=-DGGML_NATIVE=ON"
"""Without -fno-dse, gcc 12 leaves out the stores of llama.cpp's tile configuration; with AMX it crashes then."""

AVX2_BUILD = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF '
    + " ".join(f"-DGGML_{name}=ON" for name in ("AVX", "AVX2", "FMA", "F16C", "BMI2"))
    + '"'
)


def check_build(mode: Mode, name: str, build: str) -> None:
    """Refuse a build of llama.cpp that uses more than the mode's instruction set.

    Raises:
        SideError: with the command that builds another.
    """
    if mode.avx2 and SIDES[name].module == LLAMA and ("AVX512" in build or "VNNI" in build):
        raise SideError(
            f"--llama-python-avx2 names a build with more than AVX2: {build}.\nBuild another, in an environment of its "
            f"own:\n    {AVX2_BUILD} PYTHON -m pip install gguf llama-cpp-python"
        )


def busy_process() -> subprocess.Popen[bytes]:
    """Start a process that never sleeps."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"], env={**os.environ})
