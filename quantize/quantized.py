"""The result of a search, with its error.

Contract: the errors do not depend on how the rows were split into blocks: a row's sums come from the search, and sums
over rows are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixq.formats.packed import PackedLinear


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized linear layer."""

    packed: PackedLinear  # the tensors to store
    relative_squared_error: float  # sum of squared errors over sum of squared weights; 0 for an all-zero matrix
    # the same per group, averaged over the groups that are not all zero. If it is far above the other value, there are
    # rows whose large groups degrade the small ones.
    group_error: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The error of a block of rows: sums of each row, and the number of groups that are not all zero."""

    errors: list[float]
    energies: list[float]
    group_errors: list[float]
    groups: int


def summed_up(packed: PackedLinear, losses: Sequence[Loss]) -> Quantized:
    """Return the tensors with the error of all their rows."""
    error = math.fsum(row for loss in losses for row in loss.errors)
    energy = math.fsum(row for loss in losses for row in loss.energies)
    group_error = math.fsum(row for loss in losses for row in loss.group_errors)
    groups = sum(loss.groups for loss in losses)
    return Quantized(packed, error / energy if energy > 0 else 0.0, group_error / max(1, groups))
