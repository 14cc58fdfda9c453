"""Speeds and sizes of a computer: measured here, read from a file, or a preset.

Contract: plain data, no torch. Bytes, bytes per second, floating-point operations per second, seconds. A hardware file
is JSON, `{"format": "mixq-hardware", "version": 1, "name": ..., "ram": ..., "cpu": {...}, "gpu": {...} or null, ...}`
with the fields below. Every figure is checked, also for its unit (51 instead of 51e9), and an unknown key is an error
with a suggestion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mixq.errors import Fields, ModelFileError, UsageError, is_integer, is_number, printable
from mixq.experts.cost import Hardware
from mixq.formats.atomic import atomic_write_json
from mixq.formats.json_file import read_json_object
from mixq.system.load import is_disturbed

FORMAT = "mixq-hardware"
VERSION = 1
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class CpuFigures:
    """Figures of mixq's kernels on a processor and its RAM."""

    cores: int  # physical cores that a model may use
    read_bandwidth: float  # of plain reads of RAM, by all threads
    kernel_bandwidth: float  # of the decode kernels reading experts of Mixtral's size (nl4 g32) from RAM
    cache_bytes: int  # of the last level cache
    # cache_bandwidth, cache_bandwidth_plain: of one thread's decode kernels reading small matrices from the cache,
    # quantized and in bfloat16
    cache_bandwidth: float
    cache_bandwidth_plain: float
    flops: float  # of a prompt's experts of Mixtral's size with 128 rows each
    # small_flops, small_flops_plain: of a prompt at the demo model's sizes, one thread, quantized and in bfloat16
    small_flops: float
    small_flops_plain: float
    layer_seconds: float  # of a layer, without reading its weights
    pass_seconds: float  # of a forward pass, without layers and head


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Figures of mixq's kernels on a GPU, and of its link."""

    name: str
    # memory, free: bytes; free is None if unknown
    memory: int
    free: int | None
    # bandwidth, flops: of the kernels in its memory, and of prompts
    bandwidth: float
    flops: float
    # copy_bandwidth, copy_back: from host memory to the GPU, and back
    copy_bandwidth: float
    copy_back: float
    copy_under_load: float  # to the GPU while the CPU's kernels read RAM
    copy_latency: float  # seconds that each copy takes in addition
    handover_seconds: float  # to copy a row and the router's choice to the host, and the result back
    launch_seconds: float  # from a kernel's launch to its start
    layer_seconds: float  # of a layer, in addition to all these
    pinned_limit: int | None = None  # bytes that can be locked for copies; None if no limit was met


@dataclass(frozen=True, slots=True)
class Computer:
    """A computer.

    Attributes:
        ram, ram_free: bytes; free is None if unknown.
        disk_bandwidth: of reads without the page cache; None if unknown.
        gpu: None without a usable one.
        measured: ISO time; None for a preset.
        versions: of the software that measured it.
        load: share of the processor that other programs used during the measurement; None if unknown.
    """

    name: str
    ram: int
    cpu: CpuFigures
    ram_free: int | None = None
    disk_bandwidth: float | None = None
    gpu: GpuFigures | None = None
    measured: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    load: float | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Sentences for the user about figures that other programs disturbed; empty for quiet ones."""
        if self.load is None or not is_disturbed(self.load):
            return ()
        return (
            f"The computer was measured while other programs used {self.load:.0%} of the processor, so it may be "
            "faster than predicted. When they use less, measure it again: mixq doctor --refresh",
        )

    def hardware(self) -> Hardware:
        """Return the figures for scheduler and replay.

        Raises:
            UsageError: there is no GPU.
        """
        cpu, gpu = self.cpu, self.gpu
        if gpu is None:
            raise UsageError(f"{printable(self.name)} has no GPU.", hint="Use --device cpu.")
        return Hardware(
            self.name,
            cpu.kernel_bandwidth,
            cpu.flops,
            gpu.bandwidth,
            gpu.flops,
            gpu.copy_bandwidth,
            copy_latency=gpu.copy_latency,
            handover_seconds=gpu.handover_seconds,
            launch_seconds=gpu.launch_seconds,
            ram_bandwidth=max(cpu.read_bandwidth, cpu.kernel_bandwidth),
            disk_bandwidth=self.disk_bandwidth,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a hardware file."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "versions": dict(self.versions)}

    def write(self, path: Path) -> None:
        """Write a hardware file.

        Raises:
            StorageError: it cannot be written.
        """
        atomic_write_json(path, self.as_dict())

    @classmethod
    def read(cls, path: Path) -> Computer:
        """Read a hardware file.

        Raises:
            ModelFileError: not a hardware file, or a figure out of bounds.
            StorageError: it cannot be read.
        """
        return cls.from_dict(read_json_object(path, _LARGEST_FILE), str(path))

    @classmethod
    def from_dict(cls, content: object, where: str) -> Computer:
        """Return the computer in a hardware file's content; errors as in `read`."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ModelFileError(
                f"{printable(where)} is not a hardware file: its format is not {FORMAT!r}.",
                hint="Write one with: mixq doctor --save FILE",
            )
        where = f"{printable(where)}: "
        Fields(content, where).one_of("version", [VERSION])
        return _read(cls, Fields({k: v for k, v in content.items() if k not in ("format", "version")}, where))


Read = TypeVar("Read", CpuFigures, GpuFigures, Computer)
_MAY_BE_NONE = ("gpu", "free", "pinned_limit", "ram_free", "disk_bandwidth", "measured", "load")
_PART_OF = {"ram_free": "ram", "free": "memory"}


@dataclass(frozen=True, slots=True)
class _Unit:
    """The unit and bounds of a figure."""

    # least, most: bounds that reveal a wrong unit (GB for bytes, microseconds for seconds)
    least: int
    most: int
    example: str  # for the error message
    whole: bool = False


_RATE = _Unit(10**6, 10**15, "bytes per second, so 51 GB/s are 51e9")
_FLOPS = _Unit(10**6, 10**18, "operations per second, so 1.5 TFLOPS are 1.5e12")
_SECONDS = _Unit(0, 1, "seconds, so 60 microseconds are 60e-6")
_SIZE = _Unit(64 << 20, 10**15, "bytes, so 32 GB are 32000000000", whole=True)
_PART = _Unit(0, 10**15, _SIZE.example, whole=True)
_UNITS = {
    "cores": _Unit(1, 4096, "cores", whole=True),
    "load": _Unit(0, 1, "a share, so 20 % are 0.2"),
    "ram": _SIZE,
    "memory": _SIZE,
} | dict.fromkeys(("ram_free", "free", "pinned_limit", "cache_bytes"), _PART)


def _unit(key: str) -> _Unit:
    """Return the unit of a figure by its name."""
    if key in _UNITS:
        return _UNITS[key]
    if key == "copy_latency" or key.endswith("_seconds"):
        return _SECONDS
    return _FLOPS if "flops" in key else _RATE


def _read(kind: type[Read], given: Fields) -> Read:
    """Return the dataclass of a JSON object; its keys and every figure are checked."""
    given.only(f.name for f in fields(kind))
    optional = [f.name for f in fields(kind) if (f.default, f.default_factory) != (MISSING, MISSING)]
    read = [f.name for f in fields(kind) if f.name in given.values or f.name not in optional]
    return kind(**{name: _checked(given, name) for name in read})


def _checked(given: Fields, key: str) -> Any:
    """Return the value of a key; a figure must be within its unit's bounds."""
    value: Any = given.values.get(key)
    if value is None and key in given.values and key in _MAY_BE_NONE:
        return None
    if key == "cpu":
        return _read(CpuFigures, given.object(key))
    if key == "gpu":
        return _read(GpuFigures, given.object(key))
    if key == "versions":
        versions = given.object(key)
        return {name: versions.text(name) for name in versions.values}
    if key in ("name", "measured"):
        return given.text(key, 200)
    unit = _unit(key)
    if not (is_integer if unit.whole else is_number)(value, unit.least, unit.most):
        what = "a whole number" if unit.whole else "a number"
        what += " above 0" if unit.least else ", 0 or above"
        raise given.wrong(key, f"{what}: {unit.example}")
    if key in _PART_OF and value > (whole := given.values[_PART_OF[key]]):
        raise given.wrong(key, f"at most {_PART_OF[key]}, {whole}")
    return value if unit.whole else float(value)
