"""Compile every Triton kernel at Mixtral's sizes for six GPUs, none of which is needed: registers, memory, spills.

    python tests/bench/triton_compile.py [--targets 80 90] [--only gate] [--write]

Fails if a kernel spills registers to memory or asks for more shared memory than the GPU gives a program. --write puts
the table into tests/accept/results/triton_compile.md. Registers are those of `ptxas -v`; programs an SM says how many
of a kernel's programs its registers, shared memory and threads let run at once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mixq.kernels.triton import activations, attention, dequantize, experts, linears, prefill, router
from mixq.kernels.triton.dots import WARPS, rows_at_once
from mixq.kernels.triton.formats import ABSENT, BF16, BYTES, NIBBLES, Format

RESULTS = Path(__file__).parents[1] / "accept" / "results" / "triton_compile.md"

D, F, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, ACTIVE = 4096, 14336, 32, 8, 128, 8, 2

FORMATS = {
    "nl4:16": Format(NIBBLES, 0, 16),
    "nl4:32": Format(NIBBLES, 0, 32),
    "nl4:64": Format(NIBBLES, 0, 64),
    "w4:32": Format(NIBBLES, 1, 32),
    "w4:128:f16": Format(NIBBLES, 2, 128),
    "w8:128": Format(BYTES, 1, 128),
    "bf16": Format(BF16),
}
SCALES = {0: "*i8", 1: "*i16", 2: "*fp16"}

TYPES = {
    "x": "*fp32", "weight": "*i16", "out": "*fp32", "eps": "fp32", "planes": "*i8", "natural": "*i8", "scales": "*fp32",
    "halves": "*i16", "out_planes": "*i8", "out_natural": "*i8", "out_scales": "*fp32", "out_halves": "*i16",
    "slots": "*i64", "ids": "*i64", "answers": "*fp32", "weights": "*fp32", "D": "i32", "one": "i32", "blocks0": "i32",
    "blocks1": "i32", "logits": "*fp32", "chosen": "*fp32", "q": "*fp32", "k": "*fp32", "v": "*fp32", "cos": "*fp32",
    "sin": "*fp32", "keys": "*i16", "values": "*i16", "key_scale": "*fp32", "value_scale": "*fp32", "position": "i32",
    "capacity": "i32", "window": "i32", "scale": "fp32", "parts": "*fp32", "S": "i32", "gate": "*fp32", "up": "*fp32",
    "count": "i32", "row0": "i32",
}  # fmt: skip
"""Of the arguments; those of matrices (codes0, N0) go by their first letters, see `signature_of`."""

ROWS = [(rows, asm) for asm in (False, True) for rows in (1, rows_at_once(asm))]
"""Rows of activations, with and without inline assembly: one, and as many as a launch takes."""

SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""KiB of shared memory that a program can have."""

THREADS_OF_SM = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 120: 1536}
SHARED_OF_SM = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 120: 100}


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel with its constants, and the types that differ from TYPES."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int
    types: dict[str, str]
    stages: int = 3


@dataclass(frozen=True, slots=True)
class Usage:
    registers: int
    spills: int
    stack: int
    shared: int

    def programs(self, target: int, warps: int) -> int:
        """How many programs an SM holds at once."""
        registers = -(-self.registers // 8) * 8 * 32 * warps
        limits = [65536 // registers, THREADS_OF_SM[target] // (32 * warps)]
        if self.shared:
            limits.append(SHARED_OF_SM[target] * 1024 // (self.shared + 1024))
        return min(limits)


def matrix_case(name: str, form: str, kernel: Any, constants: dict[str, Any], asm: bool) -> Case:
    if "T" in constants:
        name += f", {constants['T']} rows"
    types = {"scales": SCALES[FORMATS[form].scale]} if kernel is dequantize.dequantize_kernel else {}
    warps = 4 if kernel is dequantize.dequantize_kernel else WARPS
    if kernel is not dequantize.dequantize_kernel:
        constants = {**constants, "ASM": asm}
        name += ", asm" if asm else ""
    return Case(name, kernel, constants, warps, types)


def linear_cases() -> Iterator[Case]:
    """One product, and q, k, v of the default mix."""
    for form, (T, asm) in product(FORMATS, ROWS):
        if asm and form == "bf16" and T == 1:
            continue  # the same as without
        numbers = {"FORMAT0": FORMATS[form].number, "FORMAT1": ABSENT, "FORMAT2": ABSENT}
        yield matrix_case(
            f"linear {form}", form, linears.linears_kernel, {**numbers, "K": D, "T": T, "BN": linears.ROWS}, asm
        )
    for T, asm in ROWS:
        numbers = {f"FORMAT{i}": FORMATS[form].number for i, form in enumerate(("nl4:16", "w8:128", "w8:128"))}
        constants = {**numbers, "K": D, "T": T, "BN": linears.ROWS}
        yield matrix_case("q, k, v", "nl4:16", linears.linears_kernel, constants, asm)


def expert_cases() -> Iterator[Case]:
    for form, (T, asm) in product(("nl4:16", "nl4:32", "w4:32", "w8:128", "bf16"), ROWS):
        if asm and form == "bf16" and T == 1:
            continue  # the same as without
        number, sizes = FORMATS[form].number, {"D": D, "F": F, "T": T, "A": ACTIVE}
        constants = {**sizes, "FP": F, "FORMAT1": number, "FORMAT3": number}
        yield matrix_case(f"gate, up {form}", form, experts.gate_up_kernel, constants, asm)
        constants = {**sizes, "FORMAT2": number, "BN": experts.DOWN_ROWS}
        yield matrix_case(f"down {form}", form, experts.down_kernel, constants, asm)
    yield Case("weighted sum", experts.sum_kernel, {"A": ACTIVE, "BLOCK": experts.SUM_BLOCK}, 4, {})


def row_cases() -> Iterator[Case]:
    yield Case("prepare", activations.prepare_kernel, {"K": D, "KP": D, "B": activations.BLOCKS}, 4, {})
    norm = {"D": D, "KP": D, "B": D // 32, "BF16": True}
    for prepared in (True, False):
        name = "RMSNorm" + (", prepares" if prepared else "")
        yield Case(name, activations.rms_norm_kernel, {**norm, "PREPARE": prepared}, 8, {})
    sizes = {"D": D, "E": EXPERTS, "EP": EXPERTS, "BF16": True, "BLOCK": router.BLOCK}
    yield Case("router, top-k", router.router_kernel, {**sizes, "A": ACTIVE, "AP": ACTIVE}, 8, {})
    yield Case("SiLU-mul", prefill.silu_mul_kernel, {"BLOCK": prefill.SILU_BLOCK}, 4, {})
    for form, bits in (("nl4:32", True), ("nl4:32", False), ("w4:32", True), ("w8:128", True), ("w8:128", False)):
        constants = {"FORMAT": FORMATS[form].number, "K": D, "BLOCK": dequantize.COLUMNS, "BF16": bits}
        case = matrix_case(
            f"dequantize {form} to {'bf16' if bits else 'fp16'}", form, dequantize.dequantize_kernel, constants, False
        )
        yield Case(case.name, case.kernel, constants, 4, case.types | ({"out": "*i16"} if bits else {"out": "*fp16"}))


def attention_cases() -> Iterator[Case]:
    sizes = {"H": HEADS, "C": HEAD_DIM, "CP": HEAD_DIM}
    for kind, on_device in product(("bf16", "int8"), (False, True)):
        types = {"keys": "*i8", "values": "*i8"} if kind == "int8" else {}
        types |= {"position": "*i64"} if on_device else {}
        constants = {**sizes, "KV": KV_HEADS, "KIND": int(kind == "int8"), "ON_DEVICE": on_device}
        suffix = f" {kind}" + (", position on the GPU" if on_device else "")
        yield Case("rotary, KV write" + suffix, attention.rotary_append_kernel, constants, 1, types)
        constants = {**constants, "SPLIT": attention.SPLIT, "TILE": attention.TILE, "PRECISION": "tf32x3"}
        warps, stages = attention.ATTENTION_WARPS, attention.ATTENTION_STAGES
        yield Case("attention" + suffix, attention.attention_kernel, constants, warps, types, stages)
    yield Case("attention, join", attention.join_kernel, {**sizes, "ON_DEVICE": False, "SPLIT": attention.SPLIT}, 1, {})


def cases() -> list[Case]:
    return [*linear_cases(), *expert_cases(), *row_cases(), *attention_cases()]


def signature_of(case: Case) -> dict[str, str]:
    """Return the type of each argument, "constexpr" for constants."""

    def type_of(name: str) -> str:
        if name in case.constants:
            return "constexpr"
        if name in case.types or name in TYPES:
            return case.types.get(name, TYPES.get(name, ""))
        by_letters = {"codes": "*i32", "row_scale": "*fp32", "table": "*i8", "out": "*fp32", "N": "i32"}
        stem = name.rstrip("0123456789")
        if stem == "scales":
            form = case.constants[f"FORMAT{name.removeprefix(stem)}"]
            return SCALES[0 if form == ABSENT else form // 4 % 4]
        return by_letters[stem]

    return {name: type_of(name) for name in case.kernel.arg_names}


def compiled(case: Case, target: int) -> Any:
    """Compile a case as it would be launched on a GPU of this compute capability (75, 80, ...)."""
    constants = dict(case.constants)
    if target < 80 and "PRECISION" in constants:
        constants["PRECISION"] = "ieee"
    names, signature = case.kernel.arg_names, signature_of(case)
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name.rstrip("012") in ("N", "D")]
    source = ASTSource(
        case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if signature[names[i]] != "constexpr"},
    )
    options = {"num_warps": case.warps, "num_stages": case.stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def usage_of(case: Case, target: int) -> Usage:
    """Compile, and ask ptxas what the kernel takes."""
    kernel = compiled(case, target)
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = folder / ("ptxas-blackwell" if target >= 100 and (folder / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        name = f"--gpu-name=sm_{target}{'a' if target >= 90 else ''}"
        said = subprocess.run(
            [ptxas, "-v", name, file.name, "-o", "/dev/null"], capture_output=True, text=True, check=False
        )
    found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said.stderr)
    registers = re.search(r"Used (\d+) registers", said.stderr)
    if said.returncode or found is None or registers is None:
        raise RuntimeError(f"ptxas on {case.name} for sm_{target}: {said.stderr}")
    stack, stores, loads = map(int, found.groups())
    return Usage(int(registers[1]), stores + loads, stack, kernel.metadata.shared)


def failure(case: Case, target: int, usage: Usage) -> str | None:
    """Return what is wrong, None if nothing is."""
    if usage.spills or usage.stack:
        return f"{case.name} for sm_{target}: {usage.spills} bytes spilled, {usage.stack} of stack"
    if usage.shared > SHARED_LIMIT[target] * 1024:
        return f"{case.name} for sm_{target}: {usage.shared} bytes of shared memory"
    return None


def _measure(job: tuple[int, int]) -> Usage:
    index, target = job
    return usage_of(cases()[index], target)


def table(rows: list[tuple[Case, list[Usage]]], targets: list[int]) -> str:
    """Return markdown: registers, programs an SM and bytes of shared memory."""
    head = "| kernel | warps | " + " | ".join(f"sm_{target}" for target in targets) + " |"
    lines = [head, "|---" * (2 + len(targets)) + "|"]
    for case, usages in rows:
        cells = [
            f"{usage.registers} x{usage.programs(target, case.warps)}"
            + (f" {usage.shared} B" if usage.shared else "")
            + (f" **spills {usage.spills}**" if usage.spills else "")
            for target, usage in zip(targets, usages, strict=True)
        ]
        lines.append(f"| {case.name} | {case.warps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", type=int, nargs="+", default=list(SHARED_LIMIT), choices=list(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="kernels whose name has this in it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chosen = [i for i, case in enumerate(cases()) if options.only in case.name]
    jobs = list(product(chosen, options.targets))
    with ProcessPoolExecutor(options.processes) as pool:
        usages = dict(zip(jobs, pool.map(_measure, jobs, chunksize=2), strict=True))
    rows = [(cases()[i], [usages[i, target] for target in options.targets]) for i in chosen]
    text = table(rows, options.targets)
    print(text)
    failures = [failure(case, t, usage) for case, used in rows for t, usage in zip(options.targets, used, strict=True)]
    if said := [line for line in failures if line is not None]:
        sys.exit("\n".join(said))
    if options.write:
        RESULTS.write_text(
            "# Registers and shared memory of the Triton kernels\n\n`python tests/bench/triton_compile.py --write`, "
            f"Triton {triton.__version__} and its ptxas, Mixtral's sizes. A cell such as `71 x3 64 B`: registers per "
            "thread, programs that fit on an SM at once, shared memory per program. No kernel spills. Rows with "
            "`asm` use "
            "inline assembly (dp4a and byte permutes), which mixq does not use by default.\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main()
