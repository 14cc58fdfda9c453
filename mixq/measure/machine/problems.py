"""Problems of a computer and their remedies: the last lines of `mixq doctor`.

Contract: facts in, sentences out. Reads system files for what diagnosis and probe do not have; unknown facts are not
problems. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.experts.memory_plan import RAM_MARGIN
from mixq.measure.machine.diagnosis import Diagnosis
from mixq.models.presets import PRESETS
from mixq.plan.computer import Computer
from mixq.plan.shares import RAM, share_out
from mixq.plan.sizes import ModelSizes
from mixq.system import huge_pages
from mixq.system.cores import cpu_limit
from mixq.system.load import is_disturbed
from mixq.system.memory import memory_limit, swapped_memory

SLOW_DISK = 1e9
SLOW_RAM = 15e9
SWAPPED = 1 << 30
NOT_MEASURED = "gpu, not measured"
"""Key in a computer's versions: why a usable GPU has no figures."""

_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that makes models slow or impossible, and what to do about it."""

    what: str
    remedy: str


def problems(found: Diagnosis, computer: Computer | None) -> list[Problem]:
    """Return the problems, the most serious first.

    Args:
        computer: None if there was too little memory to measure it.
    """
    wrong = list(_of_kernels(found))
    if computer is None:
        wrong.append(Problem("Not enough free memory to measure this computer.", "Close other programs."))
    else:
        wrong += [*_of_measuring(computer), *_of_memory(computer)]
    return [*wrong, *_of_gpu(found, computer), *_of_system(found)]


def _of_kernels(found: Diagnosis) -> Iterator[Problem]:
    if not found.kernels_right:
        yield Problem(
            f"The {found.isa} kernels compute wrong results.",
            "Set MIXQ_CPU_ISA=reference to use torch's kernels, and report a bug with this output.",
        )
    if found.native_reason is not None and not found.isa_forced:
        yield Problem(
            "The native kernels are missing, so models run slowly.", "Install a compiler (gcc), then reinstall mixq."
        )
    elif found.isa_forced and found.isas and found.isa != found.isas[-1]:
        yield Problem(
            f"MIXQ_CPU_ISA is {found.isa}; this processor supports {found.isas[-1]}, which is faster.",
            "Unset MIXQ_CPU_ISA.",
        )
    elif found.features and "avx2" not in found.features and "asimd" not in found.features:
        yield Problem(
            "The processor has no AVX2, so the portable kernels run at a tenth of the speed.", "Use another computer."
        )


def _of_measuring(computer: Computer) -> Iterator[Problem]:
    if computer.load is not None and is_disturbed(computer.load):
        yield Problem(
            f"Other programs took {computer.load:.0%} of the processor while measuring, so the speeds are too low.",
            "Close them, then run `mixq doctor --refresh`.",
        )


def _of_memory(computer: Computer) -> Iterator[Problem]:
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    sizes = ModelSizes.of_format("mixtral-8x7b", "nl4", config)
    needed = share_out(sizes, RuntimeOptions(), "cpu", None).total(RAM)
    free = computer.ram if computer.ram_free is None else computer.ram_free
    gpu = computer.gpu
    on_gpu = 0 if gpu is None else gpu.memory if gpu.free is None else gpu.free
    if free * (1 - RAM_MARGIN) + on_gpu < needed:
        yield Problem(
            f"Mixtral 8x7B needs {format_size(needed)} with its context; {format_size(free)} of RAM are free, and mixq "
            f"leaves {RAM_MARGIN:.0%} of that unused. Some experts will be read from the disk.",
            "Close other programs, or add RAM. `mixq plan mixtral-8x7b` shows the speed.",
        )
        disk = computer.disk_bandwidth
        if disk is not None and disk < SLOW_DISK:
            yield Problem(
                f"The disk reads {format_size(disk)}/s, too slow for reading experts while the model runs.",
                "Put the model store ($MIXQ_HOME) on an NVMe disk.",
            )
    if computer.cpu.read_bandwidth < SLOW_RAM:
        yield Problem(
            f"RAM is read at {format_size(computer.cpu.read_bandwidth)}/s; with two channels it should reach 40 GB/s.",
            "Close other programs and run `mixq doctor --refresh`; check that memory modules are installed in pairs.",
        )


def _of_gpu(found: Diagnosis, computer: Computer | None) -> Iterator[Problem]:
    if found.gpu is None and _NVIDIA.exists():
        yield Problem(
            f"The NVIDIA GPU is not used: {found.gpu_use}",
            "Check that `nvidia-smi` lists it, and install a CUDA build of torch (pytorch.org).",
        )
    if found.gpu is not None and found.gpu_use is not None:
        yield Problem(
            f"{found.gpu} is not used: {found.gpu_use}", "Fix the cause. Until then mixq computes on the CPU."
        )
    if computer is None:
        return
    if (reason := computer.versions.get(NOT_MEASURED)) is not None:
        yield Problem(f"{found.gpu} could not be measured: {reason}", "Close the other programs that use it.")
    limit = None if computer.gpu is None else computer.gpu.pinned_limit
    if limit is not None:
        yield Problem(
            f"The system locks at most {format_size(limit)} of memory for copies to the GPU; experts beyond that "
            "are copied more slowly, through a small buffer.",
            "Under WSL, raise `memory` in .wslconfig, and run mixq outside of Docker Desktop.",
        )


def _of_system(found: Diagnosis) -> Iterator[Problem]:
    memory, cpus = memory_limit(), cpu_limit()
    if memory is not None and found.memory_bytes is not None and memory < found.memory_bytes:
        yield Problem(
            f"This process may use {format_size(memory)} of the machine's {format_size(found.memory_bytes)} of RAM.",
            "Start its container or unit with a larger limit (docker run --memory, systemd's MemoryMax).",
        )
    if cpus is not None and cpus < found.logical_cpus:
        yield Problem(
            f"This process may use {cpus:.1f} of the machine's {found.logical_cpus} CPUs.",
            "Start its container or unit with more (docker run --cpus, systemd's CPUQuota).",
        )
    if huge_pages.are_off():
        yield Problem(
            "Transparent huge pages are off; with them the CPU kernels read faster.",
            f"echo madvise | sudo tee {huge_pages.SETTING}",
        )
    swap = swapped_memory()
    if swap >= SWAPPED:
        yield Problem(
            f"{format_size(swap)} of memory are swapped out, because the running programs need more RAM than there is.",
            "Close other programs before loading a model.",
        )
