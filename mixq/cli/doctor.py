"""`mixq doctor`: which kernels this machine gets, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from mixq.cli import options, output
from mixq.config import format_size
from mixq.errors import MixqError, printable

if TYPE_CHECKING:
    from mixq.diagnosis import Diagnosis

LOG_LINES = 12


def doctor(json: options.Json = False) -> None:
    """Show what mixq finds here: CPU, kernels and why these, threads, memory, where models lie.

    Ends with exit code 1 where the kernels compute wrongly.
    """
    from mixq.diagnosis import diagnose

    found = diagnose()
    if json:
        output.print_json(found.as_dict())
    else:
        _print(found)
    if found.native_reason is not None and not found.isa_forced:
        output.warn("the native kernels are missing, so models run slowly. Install a compiler (gcc), then mixq again.")
    if not found.usable:
        output.print_error(
            MixqError(
                f"The {found.isa} kernels do not compute what the reference computes.",
                hint="Set MIXQ_CPU_ISA=reference to use torch's, and report this page.",
            )
        )
        raise typer.Exit(MixqError.exit_code)


def _print(found: Diagnosis) -> None:
    from rich.console import Console

    from mixq.cli.tables import fact_grid

    console = Console(highlight=False, markup=False)
    console.print(f"mixq {found.mixq}", style="bold")
    console.print(fact_grid((label, printable(value, 400)) for label, value in _facts(found)))
    if found.build_log is not None:
        console.print()
        console.print("the compiler said", style="dim")
        for line in found.build_log.splitlines()[-LOG_LINES:]:
            console.print(printable(line, 400), soft_wrap=True)


def _facts(found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "system", f"{found.system}, Python {found.python}"
    yield "CPU", f"{found.cpu}: {_cores(found)}"
    yield "features", " ".join(found.features) or "not known"
    yield "kernels", _kernels(found)
    if found.isas:
        yield "can run", " ".join(found.isas)
    yield "check", "equal to the reference on a small product" if found.kernels_right else "WRONG results"
    if found.native_library is not None:
        yield "library", f"{found.native_library}, built with {found.compiler}"
    yield "torch", f"{found.torch}, {found.torch_threads} threads"
    yield "GPU", _gpu(found)
    yield "bitsandbytes", found.bitsandbytes or "not installed; only nf4 on a GPU would use it"
    if found.memory_bytes is not None:
        free = "" if found.memory_free_bytes is None else f", {format_size(found.memory_free_bytes)} free"
        yield "memory", f"{format_size(found.memory_bytes)}{free}"
    yield "model store", f"{found.store}: {', '.join(found.models) or 'empty'}"
    yield "cache", found.cache
    yield "settings", found.config_file or "no config.toml"


def _cores(found: Diagnosis) -> str:
    cores = f"{found.cores} physical {'core' if found.cores == 1 else 'cores'}"
    return f"{cores}, so {found.cores} {'thread' if found.cores == 1 else 'threads'}; {found.logical_cpus} logical CPUs"


def _gpu(found: Diagnosis) -> str:
    if found.gpu_use is None:
        return f"{found.gpu}, with Triton kernels"
    return f"{found.gpu}, not used: {found.gpu_use}" if found.gpu else f"none: {found.gpu_use}"


def _kernels(found: Diagnosis) -> str:
    if found.native_reason is not None:
        reason, colon, _ = found.native_reason.partition(": ")
        said = f"{reason}; see below." if colon and found.build_log is not None else found.native_reason
        return f"torch's, slow. {said}"
    if found.isa_forced:
        return f"native, {found.isa}: MIXQ_CPU_ISA asks for it"
    return f"native, {found.isa}: the best that CPU and library have"
