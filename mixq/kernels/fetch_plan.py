"""How decode fetches weights from RAM: a plan that is measured on the machine, once.

Contract: a plan changes no result, only the speed. `chosen` reads the plan from `fetch_plan.json` in the cache, or
measures the plans of `PLANS` and keeps the fastest; another processor, instruction set, number of threads or version of
mixq measures again. The default stays unless another plan is 3 % faster. Machines differ: on one, fetching into the
second-level cache reads 1.5 times as much from RAM as fetching next to the core, on another it is the other way round.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import MixqError
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object
from mixq.formats.nl4 import DEFAULT_TABLE
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.native_library import Fetch, Matrix
from mixq.system import paths
from mixq.system.cores import cpu_facts, cpu_name, physical_cores
from mixq.system.huge_pages import allocate
from mixq.system.memory import available_memory

FILE_NAME = "fetch_plan.json"
_LARGEST_FILE = 1 << 16
_ROUNDS = 7
_GAIN = 1.03
_COLUMNS, _PIECE, _BUFFER = 4096, 16 << 20, 512 << 20
_NONE, _ONCE, _OUTER, _TWICE = range(4)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """How weights are fetched; the fields are those of MixqFetch in native/api.h."""

    hint: int
    rows: int  # of weights, side by side
    distance: int = 0  # bytes ahead
    near: int = 0  # bytes ahead of the second fetch

    def __str__(self) -> str:
        into = ("by the processor alone", "next to the core", "into the L2 cache", "into the L2 and then the L1 cache")
        ahead = f", {self.distance >> 10} KiB ahead" if self.distance else ""
        return f"{into[self.hint]}{ahead}, {self.rows} {'row' if self.rows == 1 else 'rows'} at a time"


PLANS: Mapping[str, FetchPlan] = {
    "outer, near": FetchPlan(_TWICE, 1, 8192, 1024),
    "outer, near, two rows": FetchPlan(_TWICE, 2, 8192, 1024),
    "outer": FetchPlan(_OUTER, 1, 8192),
    "outer, four rows": FetchPlan(_OUTER, 4, 32768),
    "once": FetchPlan(_ONCE, 1, 8192),
    "none": FetchPlan(_NONE, 1),
}
"""outer, near: the default; the L2 cache hides the memory's latency, the L1 cache that of the L2.
outer, near, two rows: the two rows share the loads of the activations, where registers suffice for it.
outer: for processors whose own prefetch fills the L1 cache in time.
outer, four rows: more streams at a time, for memory with a long latency.
once: nothing is evicted from the L2 cache, where prefetches into the L1 cache are not dropped.
none: for processors whose own prefetch is better, and for weights that stay in the cache."""

DEFAULT = PLANS["outer, near"]


def chosen(kernels: NativeKernels, *, refresh: bool = False) -> FetchPlan:
    """Return the plan for this machine: an earlier choice, or a new measurement, which takes a fraction of a second."""
    machine = _machine(kernels.isa, kernels.threads)
    found = None if refresh else _kept(machine)
    if found is None:
        found = measure(kernels)
        with contextlib.suppress(MixqError, OSError):  # without a writable cache, every run measures
            paths.cache().mkdir(parents=True, exist_ok=True)
            atomic_write_json(_file(), {**machine, "plan": dataclasses.asdict(found)})
    return found


def kept() -> FetchPlan | None:
    """Return the plan that models on this machine use, if it was measured; None if not, or without native kernels."""
    if native_library.library() is None:
        return None
    return _kept(_machine(native_library.isa(), physical_cores()))


def use(kernels: NativeKernels, plan: FetchPlan) -> None:
    """Let the kernels fetch weights as the plan says."""
    kernels.fetch = Fetch(plan.hint, plan.rows, plan.distance, plan.near)


def measure(kernels: NativeKernels, *, nbytes: int | None = None) -> FetchPlan:
    """Return the fastest plan for reading nl4 weights from RAM.

    Args:
        nbytes: of random weights, read in turns so that none is in a cache; None: as many as memory allows, up to
            512 MiB.
    """
    if nbytes is None:
        free = available_memory()
        nbytes = _BUFFER if free is None else min(_BUFFER, free // 4)
    try:
        codes = allocate(max(nbytes, _PIECE))
    except MixqError:  # no memory: nothing to read from
        return DEFAULT
    codes.fill_(0x5A)  # unwritten pages would all be mapped to one zero page, which stays in the cache
    pieces = [codes[begin : begin + _PIECE] for begin in range(0, len(codes) - _PIECE + 1, _PIECE)]
    x, product, before = torch.ones(1, _COLUMNS), _product(kernels), kernels.fetch
    rates: dict[str, list[float]] = {name: [] for name in PLANS}
    turn = 0
    try:
        for _ in range(_ROUNDS):
            for name, plan in PLANS.items():
                use(kernels, plan)
                started = time.perf_counter()
                product(pieces[turn % len(pieces)], x)
                rates[name].append(_PIECE / (time.perf_counter() - started))
                turn += 1
    finally:
        kernels.fetch = before
    return fastest({name: statistics.median(values) for name, values in rates.items()})


def fastest(rates: Mapping[str, float]) -> FetchPlan:
    """Return the plan with the highest rate, or the default if that is within 3 % of it."""
    best = max(rates, key=lambda name: rates[name])
    default = next(name for name, plan in PLANS.items() if plan is DEFAULT)
    return PLANS[best if rates[best] > rates[default] * _GAIN else default]


def _product(kernels: NativeKernels) -> Callable[[Tensor, Tensor], None]:
    """Return a function that multiplies nl4 weights with these codes by x, with the scales of any."""
    rows = _PIECE // (_COLUMNS // 2)
    scales, row_scale = torch.ones(rows, _COLUMNS // 32, dtype=torch.int8), torch.ones(rows)
    out, table = torch.empty(1, rows), (ctypes.c_int8 * 16)(*DEFAULT_TABLE)

    def multiply(codes: Tensor, x: Tensor) -> None:
        matrix = Matrix(1, 32, rows, _COLUMNS, codes.data_ptr(), scales.data_ptr(), row_scale.data_ptr(), 0, table)
        kernels.multiply(matrix, x, out)

    return multiply


def _kept(machine: Mapping[str, str]) -> FetchPlan | None:
    try:
        content = dict(read_json_object(_file(), _LARGEST_FILE))
    except MixqError:
        return None
    plan = content.pop("plan", None)
    if content != machine or not isinstance(plan, dict):
        return None
    return next((known for known in PLANS.values() if dataclasses.asdict(known) == plan), None)


def _machine(isa: int, threads: int) -> dict[str, str]:
    """Return what a choice depends on."""
    facts = cpu_facts()
    return {
        "mixq": importlib.metadata.version("mixq"),
        "cpu": f"{cpu_name()}, family {facts.get('cpu family')}, model {facts.get('model')}",
        "isa": native_library.isa_name(isa),
        "threads": str(threads),
    }


def _file() -> Path:
    return paths.cache() / FILE_NAME
