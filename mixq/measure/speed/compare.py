"""Compares two benches: the ratio of the speeds in each test, and whether it is more than noise.

Contract: files of JSON lines, mixq's or llama-bench's (`-o jsonl`), which use the same names. The interval of a ratio
is Welch's at 95 %, of the samples' means, by the delta method. Other differences between the runs (computer, kernels,
plan) are listed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixq.errors import Fields, ModelFileError, StorageError, UsageError, is_number, printable
from mixq.formats.json_file import parse_json_object, regular_file_size

LONGEST_LINE = 1 << 20
MOST_LINES = 100_000

_STUDENT = (
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""0.975 quantiles of Student's distribution with 1, 2, ... 30 degrees of freedom; beyond, 1.96 + 2.4 / degrees."""

_CONTEXT = ("cpu_info", "gpu_info", "machine", "kernels", "plan", "n_threads", "type_k", "backends", "torch")
"""Facts that must be equal for a ratio that compares only the code."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of a file."""

    # model, test: the names
    model: str
    test: str
    samples: tuple[float, ...]  # tokens per second
    facts: Mapping[str, Any]  # the whole line

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def load(self) -> float | None:
        """Share of the processors that other programs used meanwhile; None if unknown."""
        load = self.facts.get("load")
        return float(load) if is_number(load, 0, 1) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A test, before and after."""

    old: Measured
    new: Measured
    ratio: float
    # low, high: 95 % interval of the ratio; None if a side has a single sample
    low: float | None
    high: float | None
    differences: tuple[str, ...]  # other facts that differ

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "no difference seen" or "one run: no interval"."""
        if self.low is None or self.high is None:
            return "one run: no interval"
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return "faster" if self.ratio > 1 else "slower"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "model": self.old.model,
            "test": self.old.test,
            "old_ts": self.old.mean,
            "new_ts": self.new.mean,
            "old_commit": self.old.facts.get("build_commit"),
            "new_commit": self.new.facts.get("build_commit"),
            "old_load": self.old.load,
            "new_load": self.new.load,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "verdict": self.verdict,
            "differences": list(self.differences),
        }


def read(path: Path) -> list[Measured]:
    """Return the lines of a file, in their order.

    Raises:
        ModelFileError: no such file, or a line is not a bench result.
        StorageError: it cannot be read.
    """
    regular_file_size(path)
    found = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE or number > MOST_LINES:
                    raise ModelFileError(f"{printable(path)}, line {number}: too long for bench results.")
                if line.strip():
                    found.append(_measured(line, f"{path}, line {number}"))
    except OSError as error:
        raise StorageError(f"{printable(path)} cannot be read: {error.strerror or error}.") from error
    if not found:
        raise ModelFileError(f"{printable(path)} has no results.", hint="Write some with: mixq bench --save FILE")
    return found


def _measured(line: bytes, where: str) -> Measured:
    record = Fields(parse_json_object(line, where), f"{printable(where)}: ")
    samples = record.values.get("samples_ts")
    if not isinstance(samples, list) or not samples or not all(is_number(sample, 1e-9, 1e12) for sample in samples):
        raise record.wrong("samples_ts", "a list of tokens per second above 0")
    prompt, gen, depth = (record.integer(name, 0, 2**31 - 1, default=0) for name in ("n_prompt", "n_gen", "n_depth"))
    name = "+".join(part for part in (f"pp{prompt}" if prompt else "", f"tg{gen}" if gen else "") if part)
    if not name:
        raise ModelFileError(f"{printable(where)}: neither n_prompt nor n_gen.")
    test = f"{name} @ d{depth}" if depth else name
    return Measured(record.text("model_filename", 4096), test, tuple(map(float, samples)), record.values)


def compare(old: Sequence[Measured], new: Sequence[Measured], *, same_file: bool = False) -> list[Comparison]:
    """Return the tests that both have; the last line of each is used.

    Args:
        same_file: both are the same lines; the second to last is the old one.

    Raises:
        UsageError: they have no test in common.
    """
    before = _by_test(old, 1 if same_file else 0)
    after = _by_test(new, 0)
    both = [_compared(before[key], after[key]) for key in before if key in after]
    if not both:
        raise UsageError(
            "No test in the file was run twice." if same_file else "The files have no test in common.",
            hint="Compare runs of the same model with the same lengths (-p, -n, -d).",
        )
    return both


def _by_test(lines: Sequence[Measured], back: int) -> dict[tuple[str, str], Measured]:
    """Return the last line of each model and test, or the line `back` before it."""
    of_test: dict[tuple[str, str], list[Measured]] = {}
    for line in lines:
        of_test.setdefault((line.model, line.test), []).append(line)
    return {key: found[-1 - back] for key, found in of_test.items() if len(found) > back}


def _compared(old: Measured, new: Measured) -> Comparison:
    ratio = new.mean / old.mean
    differences = tuple(_differences(old.facts, new.facts))
    if len(old.samples) < 2 or len(new.samples) < 2:
        return Comparison(old, new, ratio, None, None, differences)
    parts = [(statistics.variance(side.samples) / len(side.samples) / side.mean**2) for side in (old, new)]
    spread = math.sqrt(sum(parts))
    freedom = sum(part**2 / (len(side.samples) - 1) for part, side in zip(parts, (old, new), strict=True))
    degrees = max(1, int(sum(parts) ** 2 / freedom)) if freedom else len(_STUDENT) + 1
    reach = (_STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.4 / degrees) * spread
    return Comparison(old, new, ratio, ratio * math.exp(-reach), ratio * math.exp(reach), differences)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the other differences, such as `plan.threads: 2, then 4`."""
    found = []
    for name in _CONTEXT:
        before, after = old.get(name), new.get(name)
        if name not in old or name not in new or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            for key in before:
                if before[key] != after.get(key):
                    found.append(f"{name}.{key}: {before[key]}, then {after.get(key)}")
        else:
            found.append(f"{name}: {before}, then {after}")
    return found
