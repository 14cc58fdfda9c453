"""The processor as its tables name it: vendor, family, model, stepping, cores, and the instructions that matter.

Contract: reads Linux's /proc/cpuinfo; elsewhere only the name is known. `Cpu.kind` names the file of a table, so that
no table replaces that of another kind of processor.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from mixq.measure.machine.diagnosis import FEATURES
from mixq.system.cores import physical_cores

CPU_INFO = Path("/proc/cpuinfo")
_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_ZEN = {  # AMD's families and models as Linux tells them apart (arch/x86/kernel/cpu/amd.c)
    "Zen 3": (25, (*range(0x00, 0x10), *range(0x20, 0x60))),
    "Zen 4": (25, (*range(0x10, 0x20), *range(0x60, 0xB0))),
    "Zen 5": (26, (*range(0x00, 0x30), *range(0x40, 0x50), *range(0x60, 0x80))),
}


@dataclass(frozen=True, slots=True)
class Cpu:
    """A processor; numbers are None where the system does not tell them."""

    name: str
    vendor: str
    family: int | None
    model: int | None
    stepping: int | None
    cores: int  # physical ones that this process may use
    features: tuple[str, ...]

    @property
    def microarchitecture(self) -> str | None:
        """Its name, for the processors where family and model tell it for sure."""
        if self.vendor == "AMD":
            for name, (family, models) in _ZEN.items():
                if self.family == family and self.model in models:
                    return name
        return None

    @property
    def kind(self) -> str:
        """What a file of its tables is called, such as `zen4` or `intel_6_207`."""
        known = self.microarchitecture
        if known is not None:
            return known.lower().replace(" ", "")
        parts = [self.vendor or platform.machine(), self.family, self.model]
        return "_".join(str(part).lower() for part in parts if part is not None)

    @property
    def title(self) -> str:
        """Its kind for a heading."""
        if self.microarchitecture is not None:
            return f"{self.vendor} {self.microarchitecture}"
        if self.family is None:
            return self.name
        return f"{self.vendor}, family {self.family}, model {self.model}"

    def __str__(self) -> str:
        numbers = [("family", self.family), ("model", self.model), ("stepping", self.stepping)]
        said = [f"{name} {number}" for name, number in numbers if number is not None]
        cores = f"{self.cores} {'core' if self.cores == 1 else 'cores'}"
        return ", ".join(part for part in (self.name, *said, cores, " ".join(self.features)) if part)

    @classmethod
    def read(cls) -> Cpu:
        """Return the processor of this computer."""
        first: dict[str, str] = {}
        for line in CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []:
            key, _, value = line.partition(":")
            first.setdefault(key.strip(), value.strip())
        vendor = first.get("vendor_id", "")

        def number(key: str) -> int | None:
            return int(first[key]) if first.get(key, "").isdigit() else None

        return cls(
            first.get("model name") or platform.processor() or platform.machine(),
            _VENDORS.get(vendor, vendor),
            number("cpu family"),
            number("model"),
            number("stepping"),
            physical_cores(),
            tuple(flag for flag in first.get("flags", first.get("Features", "")).split() if flag in FEATURES),
        )
