"""The machine: card, host, and the bandwidths that every limit is computed from."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.experts.accelerators.cuda import CudaAccelerator
from mixq.experts.accelerators.interface import Accelerator
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.kernels.dispatch import choose
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.bandwidth import Bandwidth
from mixq.system.cores import physical_cores
from mixq.system.huge_pages import allocate
from mixq.system.memory import total_memory
from tests.bench.gpu_section import Session

CHUNK = 4 << 20


def run(session: Session) -> None:
    """Find out."""
    found = session.found
    found["gpu_memory_used_before_bytes"] = used_by_all()
    host = choose(threads=physical_cores())
    found["host"] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": physical_cores(),
        "ram_bytes": total_memory(),
        "kernels": host.name,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    found["versions"] = {name: _version(name) for name in ("torch", "triton", "transformers", "accelerate")}
    session.save()
    if session.cuda:
        with session.trying("card"):
            found["card"] = _card()
    size = (1 << 24) if session.quick else (1 << 30)
    probe = None
    with session.trying("RAM bandwidth"):
        if isinstance(host, NativeKernels):
            probe = Bandwidth(host, largest=size)
            found["ram_read_bytes_per_second"] = max(probe.probe() for _ in range(3))
    with session.trying("GPU bandwidth"):
        found["gpu_read_bytes_per_second"] = _gpu_bandwidth(session)
    with session.trying("link"):
        accelerator: Accelerator
        if session.cuda:
            from mixq.kernels.triton.kernels import TritonKernels

            accelerator = CudaAccelerator(None, TritonKernels(torch.device("cuda", 0)))
        else:
            accelerator = SimulatedAccelerator(4 * size, bandwidth=4e9)
        _link(session, accelerator, size // 2, probe)


def used_by_all() -> int | None:
    """Return the bytes of the first GPU that all processes take; runs the driver's tool, without a context."""
    line = smi("memory.used")
    return None if line is None else int(line.split()[0]) << 20


def smi(what: str) -> str | None:
    """Return a field of nvidia-smi for the first card, None where it does not say."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip()[:1].isalnum() else None


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "driver": smi("driver_version"),
        "cuda": torch.version.cuda,
        "link": smi("pcie.link.gen.current,pcie.link.width.current"),
    }


def _gpu_bandwidth(session: Session) -> float:
    """Return the highest of some reads of 4 GiB."""
    count = (1 << 20) if session.quick else (1 << 30)
    data = torch.ones(count, dtype=torch.float32, device="cuda" if session.cuda else "cpu")
    ways = {"torch sum": data.sum, "torch max": lambda: data.view(torch.int32).amax()}
    if session.cuda:
        from tests.bench.gpu_read import read

        ways["triton"] = lambda: read(data)
    rates = {name: data.nbytes / min(session.time(way) for _ in range(3)) for name, way in ways.items()}
    session.found["gpu_read_by_way_bytes_per_second"] = rates
    return max(rates.values())


def _link(session: Session, accelerator: Accelerator, size: int, probe: Bandwidth | None) -> None:
    found = session.found
    target, source = accelerator.allocate(size), allocate(size)
    source.fill_(1)
    found["pageable_copy_bytes_per_second"] = _copies(accelerator, target, source)
    begun = time.perf_counter()
    found["registered"] = accelerator.register(source)
    found["register_bytes_per_second"] = size / (time.perf_counter() - begun)
    found["copy_bytes_per_second"] = max(_copies(accelerator, target, source) for _ in range(3))
    if session.cuda:
        seconds = session.time(lambda: target.copy_(source, non_blocking=True))
        found["copy_in_one_bytes_per_second"] = size / seconds
    if probe is not None:
        over = threading.Event()
        rates: list[float] = []

        def read() -> None:
            while not over.is_set():
                rates.append(probe.probe())

        thread = threading.Thread(target=read)
        thread.start()
        found["copy_while_cpu_reads_bytes_per_second"] = max(_copies(accelerator, target, source) for _ in range(3))
        over.set()
        thread.join()
        found["ram_read_while_copying_bytes_per_second"] = min(rates)
    row, there = accelerator.host_rows(1, 4096, dtype=torch.float32), torch.ones(1, 4096)

    def hand_over() -> None:
        accelerator.to_host(accelerator.to_device(there), row)
        accelerator.hand_over().wait()

    found["row_to_gpu_and_back_seconds"] = session.time(hand_over, repeats=50)


def _copies(accelerator: Accelerator, target: Tensor, source: Tensor) -> float:
    """Return the bytes per second of copies in chunks, two under way, as the engine makes them."""
    begun = time.perf_counter()
    events = []
    for start in range(0, len(source), CHUNK):
        events.append(accelerator.upload(target[start : start + CHUNK], source[start : start + CHUNK]))
        if len(events) > 1:
            events[-2].wait()
    events[-1].wait()
    return len(source) / (time.perf_counter() - begun)


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
