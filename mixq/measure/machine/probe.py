"""This computer's speeds and sizes, measured once in a few seconds and cached.

Contract: `probe` measures or reads an earlier measurement; `cached` only reads. The file (`hardware.json` in the cache)
is valid while mixq, torch, the processor, its instruction set, the number of cores and the GPU stay the same;
everything is measured again if it cannot be read, if the GPU was too full to be measured, or if other programs
disturbed the measurement and the machine is quieter now. Free memory is read each time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from mixq.errors import DoesNotFitError, MixqError, printable
from mixq.kernels import triton
from mixq.measure.machine.diagnosis import gpu_name, isa_in_use
from mixq.measure.machine.probe_cpu import measure_cpu
from mixq.measure.machine.probe_gpu import measure_gpu
from mixq.measure.machine.problems import NOT_MEASURED
from mixq.plan.computer import Computer
from mixq.system import paths
from mixq.system.cores import cpu_name, physical_cores
from mixq.system.load import DISTURBED, Work, current_load, is_disturbed
from mixq.system.memory import available_memory, total_memory

FILE_NAME = "hardware.json"
_READ, _PIECE, _LEAST = 256 << 20, 8 << 20, 32 << 20
_LONGEST = 1.0


def probe(*, refresh: bool = False) -> Computer:
    """Return this computer's figures; measure them if there are none or `refresh` is set.

    Raises:
        DoesNotFitError: not enough memory for half a gigabyte of synthetic weights.
    """
    known = None if refresh else cached()
    if known is not None:
        return known
    disturbed = None if refresh else _kept()
    before, versions = Work.now(), _versions()
    cpu = measure_cpu(refresh=refresh)
    gpu = None
    if triton.unavailable_reason() is None:
        try:
            gpu = measure_gpu()
        except (DoesNotFitError, torch.OutOfMemoryError) as error:  # other programs may have used its memory
            versions[NOT_MEASURED] = printable(error)
    load = Work.now().of_others(before)
    if disturbed is not None and (load or 0.0) >= (disturbed.load or 0.0):
        return disturbed  # it became louder again meanwhile
    found = Computer(
        name=_name(),
        ram=total_memory() or available_memory() or 0,
        cpu=cpu,
        disk_bandwidth=disk_bandwidth(),
        gpu=gpu,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions,
        load=load,
    )
    with contextlib.suppress(MixqError, OSError):  # without a writable cache, every run measures
        paths.cache().mkdir(parents=True, exist_ok=True)
        found.write(_file())
    return _now(found)


def cached() -> Computer | None:
    """Return an earlier measurement of this computer.

    None if there is none, if the computer has changed since, or if other programs disturbed it and use less now.
    """
    found = _kept()
    if found is None or not is_disturbed(found.load):
        return found
    return None if _is_quieter(found.load or 0.0) else found


def _is_quieter(load: float) -> bool:
    """Whether other programs use so little now that measuring again is worth its seconds."""
    now = current_load()
    return now is not None and now <= max(DISTURBED, load / 2)


def _kept() -> Computer | None:
    """Return the measurement in the cache, if it is of this computer as it is."""
    try:
        found = Computer.read(_file())
    except MixqError:
        return None
    return _now(found) if dict(found.versions) == _versions() else None


def _file() -> Path:
    return paths.cache() / FILE_NAME


def _now(computer: Computer) -> Computer:
    """Return the computer with the currently free memory."""
    gpu = computer.gpu
    if gpu is not None and torch.cuda.is_available():
        gpu = replace(gpu, free=torch.cuda.mem_get_info(0)[0])
    return replace(computer, ram_free=available_memory(), gpu=gpu)


def _name() -> str:
    gpu, cores = gpu_name(), physical_cores()
    return f"{cpu_name()}, {cores} {'core' if cores == 1 else 'cores'}" + ("" if gpu is None else f", {gpu}")


def _versions() -> dict[str, str]:
    """Return the facts that the figures depend on."""
    return {
        "mixq": importlib.metadata.version("mixq"),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": str(physical_cores()),
        "isa": isa_in_use(),
        "gpu": _gpu(),
    }


def _gpu() -> str:
    """Return the GPU and whether it is used; a compiler or driver installed later changes it."""
    name = gpu_name()
    return "none" if name is None else name if triton.unavailable_reason() is None else f"{name}, not used"


def disk_bandwidth() -> float | None:
    """Return the bytes per second of reading a large file without the page cache; None if it cannot be measured.

    The file is the largest shard of the model store, else torch's largest library: writing a file would take too long.
    """
    path = _large_file()
    if path is None or not hasattr(os, "O_DIRECT"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # the file system does not support it
        return None
    buffer = mmap.mmap(-1, _PIECE)  # aligned to pages, as direct reads must be
    try:
        size = min(os.fstat(handle).st_size // _PIECE * _PIECE, _READ)
        done, begun = 0, time.perf_counter()
        while done < size and time.perf_counter() - begun < _LONGEST:
            count = os.preadv(handle, [buffer], done)
            if count <= 0:
                break
            done += count
        return done / (time.perf_counter() - begun) if done else None
    except OSError:
        return None
    finally:
        os.close(handle)
        buffer.close()


def _large_file() -> Path | None:
    shards, libraries = paths.store().glob("*/*.safetensors"), (Path(torch.__file__).parent / "lib").glob("*.so")
    for candidates in (shards, libraries):
        size, path = max(((_size(path), path) for path in candidates), default=(0, None))
        if size >= _LEAST:
            return path
    return None


def _size(path: Path) -> int:
    """Return the size of a file; 0 if it cannot be read, such as a broken symlink."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
