"""`mixq doctor`: what this machine is and gives, which kernels it gets and why, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.config import format_size
from mixq.errors import MixqError, printable

if TYPE_CHECKING:
    from mixq.diagnosis import Diagnosis
    from mixq.plan.computer import Computer, GpuFigures
    from mixq.problems import Problem

LOG_LINES = 12


def doctor(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again; some seconds.")] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write a hardware file, for mixq plan --hardware elsewhere."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what this machine is and gives: processor, memory, disk, GPU; kernels and why these; what is wrong.

    Speeds are measured once and kept. Ends with exit code 1 where the kernels compute wrongly. Example: mixq doctor
    --save my-laptop.json
    """
    from mixq.bench import probe
    from mixq.diagnosis import diagnose
    from mixq.problems import problems

    found = diagnose()
    if refresh or probe.cached() is None:
        output.note("Measuring this computer: some seconds.")
    computer = probe.probe(refresh=refresh)
    wrong = problems(found, computer)
    if save is not None:
        computer.write(save)
        output.note(f"{printable(save)}: figures for mixq plan --hardware.")
    if json:
        document = {"hardware": computer.as_dict(), "problems": [problem.as_dict() for problem in wrong]}
        output.print_json({**found.as_dict(), **document})
    else:
        _print(found, computer, wrong)
    if not found.usable:
        raise typer.Exit(MixqError.exit_code)


def _print(found: Diagnosis, computer: Computer, wrong: Sequence[Problem]) -> None:
    from rich.console import Console

    from mixq.cli.tables import fact_grid

    console = Console(highlight=False, markup=False)
    console.print(f"mixq {found.mixq}", style="bold")
    facts = (*_facts(found), *_speeds(computer))
    console.print(fact_grid((label, printable(value, 400)) for label, value in facts))
    if found.build_log is not None:
        console.print()
        console.print("the compiler said", style="dim")
        for line in found.build_log.splitlines()[-LOG_LINES:]:
            console.print(printable(line, 400), soft_wrap=True)
    console.print()
    if not wrong:
        console.print("nothing is wrong", style="green")
    for problem in wrong:
        console.print(f"! {printable(problem.what, 400)}", style="yellow", soft_wrap=True)
        console.print(f"  {printable(problem.remedy, 400)}", soft_wrap=True)


def _speeds(computer: Computer) -> Iterator[tuple[str, str]]:
    cpu, gpu = computer.cpu, computer.gpu
    read, kernels = format_size(cpu.read_bandwidth), format_size(cpu.kernel_bandwidth)
    yield "RAM gives", f"{read}/s; the decode kernels read experts at {kernels}/s, prompts {cpu.flops / 1e9:.0f} GFLOPS"
    yield "a layer", f"costs {1e6 * cpu.layer_seconds:.0f} µs of Python besides"
    yield "disk gives", "not known" if computer.disk_bandwidth is None else f"{format_size(computer.disk_bandwidth)}/s"
    if gpu is not None:
        yield from _gpu_speeds(gpu)
    yield "measured", computer.measured or "never"


def _gpu_speeds(gpu: GpuFigures) -> Iterator[tuple[str, str]]:
    free = "" if gpu.free is None else f", {format_size(gpu.free)} free"
    yield "GPU gives", f"{format_size(gpu.memory)}{free}, read at {format_size(gpu.bandwidth)}/s"
    up, back, loaded = (format_size(rate) for rate in (gpu.copy_bandwidth, gpu.copy_back, gpu.copy_under_load))
    yield "link gives", f"{up}/s to the GPU, {back}/s back, {loaded}/s while the CPU computes"
    if gpu.pinned_limit is not None:
        yield "locked", f"at most {format_size(gpu.pinned_limit)} for copies"


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
