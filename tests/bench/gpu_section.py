"""One section of `gpu.py`, in a process of its own: what it found so far is always on disk.

Contract: a section is a module with `run(session)`; it adds figures to `session.found`, looks at `session.over()`
between measurements, and goes on after `session.trying` has noted an error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Session:
    """What a section is told, and what it tells.

    Attributes:
        device: cuda or sim.
        quick: tiny sizes.
        part, parts: which of its processes this is.
        machine, operations: what the sections of these names found; empty where they did not run.
        found: figures, plain data.
    """

    device: str
    quick: bool
    part: int
    parts: int
    seconds: float
    file: Path
    machine: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=lambda: {"errors": []})
    begun: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def over(self, need: float = 0.0) -> bool:
        """Return whether there is no time left for something that takes `need` seconds."""
        return time.monotonic() - self.begun + need > self.seconds

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}   {text}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write what was found so far."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.found))
        new.replace(self.file)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note an error and go on; what it leaves of the GPU may fail too, and is noted as well."""
        try:
            yield
        except Exception:  # noqa: BLE001  (a bench of many parts: each error is in the report)
            self.found["errors"].append(f"{what}: {traceback.format_exc(limit=-4)[-1200:]}")
            self.say(f"{what}: {traceback.format_exc(limit=-1)}")
        self.save()

    def synchronize(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def time(self, run: Callable[[], object], *, repeats: int = 5) -> float:
        """Return the seconds of a call, the median of some, with the GPU's work; once before it does not count."""
        run()
        times = []
        for _ in range(1 if self.quick else repeats):
            self.synchronize()
            begun = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--machine", type=Path)
    arguments = parser.parse_args(argv)
    sections: dict[str, Any] = {}
    if arguments.machine is not None and arguments.machine.exists():
        sections = json.loads(arguments.machine.read_text())["sections"]
    session = Session(
        arguments.device,
        arguments.quick,
        arguments.part,
        arguments.parts,
        arguments.seconds,
        arguments.file,
        sections.get("machine", {}),
        sections.get("operations", {}),
    )
    if not session.cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    with session.trying(arguments.module):
        importlib.import_module(f"tests.bench.{arguments.module}").run(session)
    sys.stderr.flush()
    os._exit(0)  # threads and the GPU's context go without ceremony


if __name__ == "__main__":
    main()
