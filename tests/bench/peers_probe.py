"""The machine's limits beside the sides, measured between their turns: read bandwidth and int8 dot products.

Contract: in this process, whose threads sleep while a side has its turn. Figures by name, one a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.bandwidth import Bandwidth
from tests.bench.cpu import Cpu
from tests.bench.int8_peak import Int8Peak
from tests.bench.peers_sides import Measure

READ = "read bandwidth, GB/s"
INT8 = "int8 dot products, GOPS"
AMX = "amx_int8"


class Probe:
    """The limits with one thread, and with all that the sides use.

    Args:
        threads: of each side.
        measures: of the sides; the bandwidth limits a decode step, int8 products limit a prompt.
        folder: for a compiled loop.

    Attributes:
        figures: by row of the table and number of threads, one a round.
    """

    def __init__(self, cpu: Cpu, threads: int, measures: Iterable[Measure], folder: Path, *, avx2: bool) -> None:
        self.threads = sorted({1, threads})
        self.figures: dict[str, dict[int, list[float]]] = {}
        asked = {measure.what for measure in measures}
        features = ["avx2"] if avx2 else cpu.features
        self._peak = Int8Peak(features if "prefill" in asked else [], folder)
        reads = "decode" in asked and native_library.library() is not None
        self._reads = {count: Bandwidth(NativeKernels(count)) for count in self.threads if reads}

    def measurements(self) -> list[tuple[str, int, Callable[[], float]]]:
        """Return row, threads and function of each figure of a round."""
        found: list[tuple[str, int, Callable[[], float]]] = []
        for count in self.threads:
            if count in self._reads:
                found.append((READ, count, lambda count=count: self._reads[count].probe() / 1e9))
            for name in self._peak.names:
                found.append(
                    (f"{INT8}, {name}", count, lambda name=name, count=count: self._peak.rate(name, count) / 1e9)
                )
        return found

    def add(self, row: str, threads: int, figure: float) -> None:
        """Keep a round's figure."""
        self.figures.setdefault(row, {}).setdefault(threads, []).append(figure)

    def reads(self) -> list[float]:
        """Return the read bandwidth of all threads, one a round; empty without native kernels."""
        return self.figures.get(READ, {}).get(self.threads[-1], [])

    def int8_limits(self) -> dict[str, float]:
        """Return the median limit of all threads, in GOPS: of the best vector instructions, and of AMX."""
        limits = {}
        for name in self._peak.names:
            rates = self.figures.get(f"{INT8}, {name}", {}).get(self.threads[-1], [])
            if rates and (median := statistics.median(rates)) > 0:
                limits["AMX" if name == AMX else "int8"] = median
        return limits
