"""`mixq doctor`: the computer, its speeds, the kernels in use and why, problems and their remedies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.tables import fact_grid
from mixq.config import format_size
from mixq.errors import DoesNotFitError, MixqError, printable

if TYPE_CHECKING:
    from mixq.measure.machine.diagnosis import Diagnosis
    from mixq.measure.machine.problems import Problem
    from mixq.plan.computer import Computer, GpuFigures

LOG_LINES = 12


def doctor(
    refresh: Annotated[bool, options.option("--refresh", "Measure again, which takes some seconds.")] = False,
    save: Annotated[
        Path | None,
        options.option("--save", "Write a hardware file, for mixq plan --hardware on another computer.", "FILE"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show this computer's hardware and speeds, the kernels in use and why, and problems.

    Speeds are measured once and cached. The exit code is 1 if the kernels compute wrong results. Example: mixq
    doctor --save my-laptop.json
    """
    from mixq.kernels import fetch_plan
    from mixq.measure.machine import probe
    from mixq.measure.machine.diagnosis import diagnose
    from mixq.measure.machine.problems import problems

    found = diagnose()
    if refresh or probe.cached() is None:
        output.note("Measuring this computer, which takes some seconds.")
    computer: Computer | None = None
    try:
        computer = probe.probe(refresh=refresh)
    except DoesNotFitError:  # the rest of the page is still useful
        if save is not None:
            raise
    wrong = problems(found, computer)
    if save is not None and computer is not None:
        computer.write(save)
        output.note(f"{printable(save)}: written, for mixq plan --hardware.")
    if json:
        hardware = None if computer is None else computer.as_dict()
        plan = fetch_plan.kept()
        fetch = None if plan is None else {**asdict(plan), "text": str(plan)}
        document = {"hardware": hardware, "fetch_plan": fetch, "problems": [asdict(problem) for problem in wrong]}
        output.print_json({**found.as_dict(), **document})
    else:
        _print(found, computer, wrong)
    if not found.kernels_right:
        raise typer.Exit(MixqError.exit_code)


def _print(found: Diagnosis, computer: Computer | None, wrong: Sequence[Problem]) -> None:
    console = output.console()
    console.print(f"mixq {found.mixq}", style="bold")
    console.print(fact_grid((label, printable(value, 400)) for label, value in _facts(found, computer)))
    if found.build_log is not None:
        console.print()
        console.print("compiler output", style="dim")
        for line in found.build_log.splitlines()[-LOG_LINES:]:
            console.print(printable(line, 400), soft_wrap=True)
    if not wrong:
        console.print("no problems found", style="green")
    for problem in wrong:
        console.print(f"! {printable(problem.what, 400)}", style="yellow")
        console.print(f"  {printable(problem.remedy, 400)}")


def _facts(found: Diagnosis, computer: Computer | None) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line; with one or two problems all fit a terminal of 24 lines."""
    threads = f"{found.torch_threads} {'thread' if found.torch_threads == 1 else 'threads'}"
    yield "system", f"{found.system}, Python {found.python}"
    yield "torch", f"{found.torch}, {threads}; bitsandbytes {found.bitsandbytes or 'not installed'}"
    yield "CPU", f"{found.cpu}: {_cores(found)}"
    yield "features", " ".join(found.features) or "not known"
    yield "kernels", _kernels(found)
    if found.isas:
        yield "can run", " ".join(found.isas)
    yield "check", "a small product equals the reference" if found.kernels_right else "WRONG results"
    if found.memory_bytes is not None:
        free = "" if found.memory_free_bytes is None else f", {format_size(found.memory_free_bytes)} free"
        yield "memory", f"{format_size(found.memory_bytes)}{free}"
    yield "huge pages", _huge_pages(found)
    if computer is not None:
        yield from _speeds(computer)
    yield "GPU", _gpu(found)
    if computer is not None and computer.gpu is not None:
        yield from _gpu_speeds(computer.gpu)
    if found.native_library is not None:
        yield "library", f"{found.native_library}, built with {found.compiler}"
    yield "model store", f"{found.store}: {', '.join(found.models) or 'empty'}"
    yield "cached in", found.cache
    yield "settings", found.config_file or "no config.toml"
    if computer is not None:
        yield "measured", f"{computer.measured or 'never'}{_load(computer)}; --refresh measures again"


def _load(computer: Computer) -> str:
    """Return the mark of a measurement that other programs disturbed."""
    from mixq.system.load import is_disturbed

    if computer.load is None or not is_disturbed(computer.load):
        return ""
    return f", while other programs used {computer.load:.0%} of the processor"


def _speeds(computer: Computer) -> Iterator[tuple[str, str]]:
    from mixq.kernels import fetch_plan

    cpu = computer.cpu
    yield "RAM", f"read at {_rate(cpu.read_bandwidth)}, by the decode kernels at {_rate(cpu.kernel_bandwidth)}"
    if (plan := fetch_plan.kept()) is not None:
        yield "fetching", f"weights {plan}"
    yield "cache", f"{format_size(cpu.cache_bytes)}; a thread reads small matrices at {_rate(cpu.cache_bandwidth)}"
    yield "prompts", f"{_flops(cpu.flops)} with Mixtral's experts, {_flops(cpu.small_flops)} with small ones"
    yield (
        "Python",
        f"{1e6 * cpu.layer_seconds:.0f} µs per layer outside the kernels, {1e6 * cpu.pass_seconds:.0f} µs per token",
    )
    disk = computer.disk_bandwidth
    yield "disk", "not known" if disk is None else f"read at {_rate(disk)}, without the page cache"


def _gpu_speeds(gpu: GpuFigures) -> Iterator[tuple[str, str]]:
    free = "" if gpu.free is None else f", {format_size(gpu.free)} free"
    yield "GPU memory", f"{format_size(gpu.memory)}{free}, read at {_rate(gpu.bandwidth)}; prompts {_flops(gpu.flops)}"
    up, back, loaded = (_rate(rate) for rate in (gpu.copy_bandwidth, gpu.copy_back, gpu.copy_under_load))
    yield "link", f"{up} to the GPU, {back} back, {loaded} while the CPU computes"
    limit = "no limit" if gpu.pinned_limit is None else f"at most {format_size(gpu.pinned_limit)}"
    yield "locked RAM", f"{limit}; passing a row to the CPU and back takes {1e6 * gpu.handover_seconds:.0f} µs"


def _rate(rate: float) -> str:
    return f"{format_size(rate)}/s"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.2f} TFLOPS" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOPS"


def _cores(found: Diagnosis) -> str:
    cores = f"{found.cores} physical {'core' if found.cores == 1 else 'cores'}"
    return f"{cores}, {found.logical_cpus} logical CPUs"


def _huge_pages(found: Diagnosis) -> str:
    if found.files_in_huge_pages:
        return "model files are mapped in them"
    if found.memory_in_huge_pages:
        return "model files are copied into them, if the free memory is enough"
    return "none: model files are mapped in pages of 4 KiB, which is slower"


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
