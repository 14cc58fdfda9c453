"""The facts that make two benches comparable: commit, computer, kernels and plan.

Contract: plain data; nothing is run. Names are llama-bench's if it has them (build_commit, cpu_info, gpu_info,
test_time).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mixq
from mixq.engine.model import Model
from mixq.errors import StorageError, printable
from mixq.measure.machine.diagnosis import gpu_name, isa_in_use
from mixq.system.cores import cpu_name, physical_cores
from mixq.system.memory import total_memory

_HASH = re.compile(r"[0-9a-f]{40}")
_REFERENCE = re.compile(r"ref: (refs/[\w./-]{1,200})")


def facts_of_run(model: Model, routing: str = "model") -> dict[str, Any]:
    """Return the facts on which the results of a run depend."""
    placed, options = model.placement.as_dict(), model.options
    return {
        "build_commit": commit(),
        "mixq": importlib.metadata.version("mixq"),
        "torch": torch.__version__,
        "test_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu_info": cpu_name(),
        "gpu_info": gpu_name() or "",
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": physical_cores(),
            "memory_bytes": total_memory(),
        },
        "kernels": {
            "cpu": isa_in_use(),
            "trunk": model.kernels.name,
        },
        "plan": {
            "device": placed["device"],
            "weights": model.placement.weights_are,
            "vram_bytes": placed.get("vram_promised_bytes"),
            "ram_bytes": options.ram,
            "slots": placed.get("expert_slots"),
            "threads": model.threads,
            "kv": options.kv,
            "miss": placed.get("miss"),
            "cache_policy": options.cache_policy if placed.get("expert_slots") else None,
            "context": model.context,
            "routing": routing,
        },
    }


def commit() -> str | None:
    """Return the commit of the checkout that mixq runs from, 12 digits; None if it is installed elsewhere.

    Only git's files are read, so uncommitted changes are not noticed.
    """
    git = Path(mixq.__file__).resolve().parents[1] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        reference = _REFERENCE.fullmatch(head)
        if reference is not None:
            head = _resolved(git, reference[1])
    except (OSError, UnicodeDecodeError):
        return None
    return head[:12] if _HASH.fullmatch(head) else None


def _resolved(git: Path, name: str) -> str:
    """Return the commit of a reference, from its file or packed-refs."""
    loose = git / name
    if ".." not in name and loose.is_file():
        return loose.read_text(encoding="utf-8").strip()
    for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
        digest, _, packed = line.partition(" ")
        if packed == name:
            return digest
    return ""


def append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append records to a file of JSON lines, creating it if needed.

    All lines are written at once, so that those of two benches do not mix.

    Raises:
        StorageError: the file cannot be written.
    """
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = "\n" + text  # an earlier write ended in the middle of a line
            file.write(text.encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be written: {error.strerror or error}.") from error
