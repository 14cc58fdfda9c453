"""The typed events of a running job; front ends draw them.

Contract: `Job.run` yields `Started` first, then per tensor `TensorDone` and per shard `ShardDone`, with a `Notice`
wherever the user may not expect what was done, and `Finished` last (only this, if nothing was left to do). Progress is
measured in weights, not in tensors, because weights take the time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixq.quantize.report import ErrorReport, SizeTable


@dataclass(frozen=True, slots=True)
class Started:
    """The job starts or resumes: `shards_done` and `weights_done` were finished before."""

    shards: int
    shards_done: int
    weights: int
    weights_done: int
    target_bytes: int


@dataclass(frozen=True, slots=True)
class TensorDone:
    """A tensor was written; `error` is None if it was not quantized. Progress is weights_done of weights."""

    name: str
    scheme: str
    error: float | None
    weights_done: int
    weights: int


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard is complete and in the journal."""

    file: str
    sha256: str
    nbytes: int
    number: int
    shards: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job.

    `shards_done_before` counts those of an interrupted run; `already_done`: nothing was left to do. `seconds` is the
    time of this run for its `weights_done`; it is not stored in the folder.
    """

    path: Path
    format: str
    sizes: SizeTable
    errors: ErrorReport
    notices: tuple[str, ...]
    shards_done_before: int = 0
    already_done: bool = False
    seconds: float = 0.0
    weights_done: int = 0

    @property
    def weights_per_second(self) -> float:
        return self.weights_done / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it for --json."""
        tables = {"sizes": self.sizes.as_dict(), "errors": self.errors.as_dict()}
        found = {**asdict(self), **tables, "path": str(self.path), "notices": list(self.notices)}
        del found["weights_done"]
        return found | {"weights_per_second": self.weights_per_second}


@dataclass(frozen=True, slots=True)
class Finished:
    """The folder is complete."""

    result: Result


Event = Started | TensorDone | ShardDone | Notice | Finished
