"""This CPU's limit of int8 dot products, by instruction set: what an integer matrix product is compared with.

Contract: compiles int8_peak.c with the system's compiler into a folder of the caller's; without a compiler, or on a CPU
of another family, there is no limit to tell. Operations: a product and its addition are two.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_name("int8_peak.c")
FEATURES = {"avx2": "avx2", "avx_vnni": "avx_vnni", "avx512_vnni": "avx512_vnni", "amx_int8": "amx_int8"}
"""The CPU's feature that each loop needs, the slowest loop first."""
_LOOPS = 100_000
_SECONDS = 0.05


class Int8Peak:
    """The loops that this CPU can run.

    Args:
        features: of the CPU, as Linux names them.
        folder: for the compiled library.

    Attributes:
        names: the instruction sets, the slowest first; empty where none can be measured.
    """

    def __init__(self, features: Iterable[str], folder: Path) -> None:
        self._library = _compiled(folder)
        has = set(features)
        self.names = [name for name, needed in FEATURES.items() if self._library is not None and needed in has]

    def rate(self, name: str, threads: int) -> float:
        """Return the operations per second of some threads; 0.0 where the system does not allow the instructions."""
        done = [0] * threads
        end = time.perf_counter() + _SECONDS

        def run(number: int) -> None:
            while time.perf_counter() < end:
                count = self.operations(name, _LOOPS)
                done[number] += count
                if not count:
                    return

        begun = time.perf_counter()
        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / (time.perf_counter() - begun)

    def operations(self, name: str, loops: int) -> int:
        """Run a loop; return the operations done, 0 where the system does not allow the instructions."""
        function = getattr(self._library, f"peak_{name}")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int64]
        return int(function(loops))


def _compiled(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    library = folder / "int8_peak.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    made = subprocess.run(command, check=False, capture_output=True)
    return ctypes.CDLL(str(library)) if made.returncode == 0 else None
