"""What is wrong with a machine, and what to do about it: the last lines of `mixq doctor`.

Contract: facts in, sentences out. The system's own files are read where `diagnose` and the probe do not say; what
cannot be known is not complained about. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.experts.memory_plan import RAM_MARGIN
from mixq.measure.machine.diagnosis import Diagnosis
from mixq.models.presets import PRESETS
from mixq.plan.computer import Computer
from mixq.plan.shares import RAM, share_out
from mixq.plan.sizes import ModelSizes
from mixq.system.cores import cpu_limit
from mixq.system.memory import memory_limit, swapped_memory, text_of

SLOW_DISK = 1e9
SLOW_RAM = 15e9
SWAPPED = 1 << 30
DISTURBED = 0.1
NOT_MEASURED = "gpu, not measured"
"""Among a computer's versions: why a GPU that could be used has no figures."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that makes models slow, or impossible.

    Attributes:
        what: is wrong.
        remedy: what to do.
    """

    what: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


def problems(found: Diagnosis, computer: Computer | None) -> list[Problem]:
    """Return everything that is worth a user's time, the gravest first.

    Args:
        computer: None where there was no memory to measure it with.
    """
    wrong = list(_of_kernels(found))
    if computer is None:
        wrong.append(Problem("There is too little free memory to measure anything.", "Close other programs."))
    else:
        wrong += [*_of_measuring(computer), *_of_memory(computer)]
    return [*wrong, *_of_gpu(found, computer), *_of_system(found)]


def _of_kernels(found: Diagnosis) -> Iterator[Problem]:
    if not found.kernels_right:
        yield Problem(
            f"The {found.isa} kernels do not compute what the reference computes.",
            "Set MIXQ_CPU_ISA=reference to use torch's, and report this page.",
        )
    if found.native_reason is not None and not found.isa_forced:
        yield Problem(
            "The native kernels are missing, so models run slowly.", "Install a compiler (gcc), then mixq again."
        )
    elif found.isa_forced and found.isas and found.isa != found.isas[-1]:
        yield Problem(
            f"MIXQ_CPU_ISA asks for {found.isa}; this processor and the library can do {found.isas[-1]}.",
            "Unset MIXQ_CPU_ISA.",
        )
    elif found.features and "avx2" not in found.features and "asimd" not in found.features:
        yield Problem(
            "The processor has no AVX2, so the portable kernels run: a tenth of the speed.", "Use another one."
        )


def _of_measuring(computer: Computer) -> Iterator[Problem]:
    if computer.load is not None and computer.load >= DISTURBED:
        yield Problem(
            f"Other programs took {computer.load:.0%} of the processor while this was measured: it can do more.",
            "Close them, then `mixq doctor --refresh`.",
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
            f"Mixtral 8x7B needs {format_size(needed)} of RAM with its context; {format_size(free)} are free, of which "
            f"{RAM_MARGIN:.0%} stay so. Some experts will be read from the disk.",
            "`mixq plan mixtral-8x7b` says how fast that is. Close other programs, or add RAM.",
        )
        disk = computer.disk_bandwidth
        if disk is not None and disk < SLOW_DISK:
            yield Problem(
                f"The disk reads {format_size(disk)} in a second, too slow to read experts from.",
                "Put the model store ($MIXQ_HOME) on an NVMe disk.",
            )
    if computer.cpu.read_bandwidth < SLOW_RAM:
        yield Problem(
            f"RAM is read at {format_size(computer.cpu.read_bandwidth)}/s; two channels give 40 GB/s and more.",
            "Close other programs and run `mixq doctor --refresh`; see that memory modules stand in pairs.",
        )


def _of_gpu(found: Diagnosis, computer: Computer | None) -> Iterator[Problem]:
    if found.gpu is None and _NVIDIA.exists():
        yield Problem(
            f"There is an NVIDIA GPU that is not used: {found.gpu_use}",
            "See that `nvidia-smi` shows it, and install a torch that was built with CUDA (pytorch.org).",
        )
    if found.gpu is not None and found.gpu_use is not None:
        yield Problem(
            f"{found.gpu} is not used: {found.gpu_use}", "Mend that, or use --device cpu to hear no more of it."
        )
    if computer is None:
        return
    if (reason := computer.versions.get(NOT_MEASURED)) is not None:
        yield Problem(f"{found.gpu} could not be measured: {reason}", "Close the other programs that use it.")
    limit = None if computer.gpu is None else computer.gpu.pinned_limit
    if limit is not None:
        yield Problem(
            f"The system locks no more than {format_size(limit)} of memory for copies to the GPU; experts beyond that "
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
    if "[never]" in text_of(_HUGE_PAGES):
        yield Problem(
            "Transparent huge pages are off; the CPU's kernels read large pages faster.",
            f"echo madvise | sudo tee {_HUGE_PAGES}",
        )
    swap = swapped_memory()
    if swap >= SWAPPED:
        yield Problem(
            f"{format_size(swap)} of memory are swapped out: the machine has too little for what runs on it.",
            "Close other programs before a model is loaded.",
        )
