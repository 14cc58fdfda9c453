"""The computer and the kernels in use: the facts of `mixq doctor`, as plain data.

Contract: `diagnose` reads the system, loads no model and leaves no file behind. It tests the chosen kernels on one
small product against the reference. Features have the operating system's names; unknown facts are None or empty.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mixq.formats import nl4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library, reference, triton
from mixq.kernels.native_kernels import NativeKernels
from mixq.system import huge_pages, paths
from mixq.system.cores import cpu_facts, cpu_name, physical_cores
from mixq.system.memory import available_memory, total_memory

FEATURES = {
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx512vbmi", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
}  # fmt: skip
"""Features that the kernels use or could use."""

_CLOSE = 1e-5


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The facts."""

    mixq: str
    python: str
    system: str
    cpu: str
    features: tuple[str, ...]
    cores: int  # physical cores that this process may use: the default number of threads
    logical_cpus: int
    isa: str  # the instruction set in use; "reference" for torch's kernels
    isa_forced: bool  # MIXQ_CPU_ISA chose it
    isas: tuple[str, ...]  # the instruction sets that CPU and library support
    native_library: str | None  # its path; None without one, `native_reason` says why
    native_reason: str | None
    compiler: str | None
    build_log: str | None  # the compiler's output of a failed build
    kernels_right: bool  # the chosen kernels agree with the reference on a small product
    torch: str
    torch_threads: int
    gpu: str | None  # the first GPU's name; None if torch finds none. `gpu_use`: why it is not used; None if it is.
    gpu_use: str | None
    bitsandbytes: str | None  # its version, None if it is not installed; needed for nf4 on a GPU
    memory_bytes: int | None
    memory_free_bytes: int | None
    memory_in_huge_pages: bool  # for programs that ask for them
    files_in_huge_pages: bool | None  # whether files in the model store can be mapped in them; None if unknown
    store: str
    models: tuple[str, ...]  # names in the model store
    cache: str
    config_file: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        return {**asdict(self), "usable": self.kernels_right}


def diagnose() -> Diagnosis:
    """Collect the facts.

    Raises:
        UsageError: MIXQ_CPU_ISA names an instruction set that is unknown, or that this CPU lacks.
    """
    library = native_library.library()
    features = _features()
    store, config = paths.store(), paths.config_file()
    return Diagnosis(
        mixq=importlib.metadata.version("mixq"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=cpu_name(),
        features=features,
        cores=physical_cores(),
        logical_cpus=os.cpu_count() or 1,
        isa=isa_in_use(),
        isa_forced=bool(os.environ.get("MIXQ_CPU_ISA")),
        isas=tuple(native_library.supported_isas()),
        native_library=None if library is None else str(library._name),
        native_reason=native_library.unavailable_reason(),
        compiler=None if library is None else native_library.compiler(),
        build_log=_build_log(),
        kernels_right=_kernels_right(),
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
        gpu=gpu_name(),
        gpu_use=triton.unavailable_reason(),
        bitsandbytes=_installed("bitsandbytes"),
        memory_bytes=total_memory(),
        memory_free_bytes=available_memory(),
        memory_in_huge_pages=huge_pages.SETTING.exists() and not huge_pages.are_off(),
        files_in_huge_pages=huge_pages.files_can_be_in_them(paths.existing(store)),
        store=str(store),
        models=tuple(sorted(path.name for path in store.iterdir() if path.is_dir())) if store.is_dir() else (),
        cache=str(paths.cache()),
        config_file=str(config) if config.exists() else None,
    )


def isa_in_use() -> str:
    """Return the instruction set of the CPU's kernels, "reference" for torch's."""
    return "reference" if native_library.library() is None else native_library.isa_name(native_library.isa())


def gpu_name() -> str | None:
    """Return the name of the first GPU that torch finds."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _features() -> tuple[str, ...]:
    """Return the CPU's `FEATURES`, as Linux lists them."""
    facts = cpu_facts()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return tuple(flag for flag in flags if flag in FEATURES)


def _build_log() -> str | None:
    try:
        return native_library.BUILD_LOG.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels_right() -> bool:
    """Whether the kernels of a model multiply like the reference."""
    if native_library.library() is None:
        return True  # a model would use the reference
    generator = torch.Generator().manual_seed(0)
    N, K = 48, 256
    codes = torch.randint(16, (N, K), generator=generator, dtype=torch.uint8)
    scale = torch.randint(-127, 128, (N, K // 32), generator=generator, dtype=torch.int8)
    tensors = nl4.pack(codes, scale, torch.rand(N, generator=generator))
    weight = PackedLinear(Scheme("nl4", 32), (N, K), tensors, nl4.table_tensor())
    x = torch.randn(2, K, generator=generator)
    right = reference.linear(x, weight)
    answer = NativeKernels(physical_cores()).linear(x, weight)
    return bool((answer - right).norm() <= _CLOSE * right.norm())
