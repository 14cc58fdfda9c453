"""`--table fit`: fits nl4's 16 code values to the model's weights.

Contract: `fit_table` is Lloyd's algorithm (S. P. Lloyd, Least squares quantization in PCM, 1982) with the codes of the
scale search. A round searches scales and codes with the current table; then each value moves to the optimum for the
weights w that got its code, with their steps s (scale times row scale): the v of least sum (w - v s)², which is
sum(w s) / sum(s²). Only the table of a round's search is rounded, not the values that move: with rounded values the
algorithm stops as soon as no value moves by half a unit, at a third of the possible gain (on Laplace and Student t, as
measured). The table of least true error is returned, so the result is never worse on the sample than the default table.
It is a function of the weights alone: the search does not depend on threads, and the sums here are taken in float64,
one matrix after the other, by one thread.

Matrices are weighted by relative error and size, so that layers with small weights matter too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixq.formats import nl4
from mixq.formats.nl4 import DEFAULT_TABLE
from mixq.formats.scheme import Scheme
from mixq.quantize.layout import Item, Shard, all_items
from mixq.quantize.nonfinite import zero_nonfinite
from mixq.quantize.scale_search import normalised_importance, search
from mixq.quantize.sources.source import Source

Table = tuple[int, ...]
Values = npt.NDArray[np.float64]
Chosen = TypeVar("Chosen")

ROUNDS = 30
"""Most different tables to try."""

STEP = 1.5
"""How far a value moves, relative to the distance to its optimum for the same codes; codes and scales then change."""

PATIENCE = 6
"""Rounds without a better table after which the search ends."""

SAMPLE_WEIGHTS = 4 << 20
"""Weights in the sample, enough for 16 values: the error of the fitted table on other weights is within 0.1 % of the
least."""

SAMPLE_MATRICES = 12
"""Most matrices of the sample: a source reads whole matrices, perhaps over a network; 12 of Mixtral 8x7B are 1.4 GB."""


def fit_to_source(source: Source, shards: Sequence[Shard]) -> Table:
    """Return the table for the nl4 scheme of most weights of the target; the default without nl4.

    Raises:
        StorageError, ModelFileError: as `Source.tensor`.
    """
    items = [item for item in all_items(shards) if item.scheme is not None and item.scheme.name == "nl4"]
    weights: dict[Scheme, int] = {}
    for item in items:
        assert item.scheme is not None
        weights[item.scheme] = weights.get(item.scheme, 0) + item.parameter.numel
    if not weights:
        return DEFAULT_TABLE
    scheme = max(weights, key=lambda scheme: weights[scheme])
    return fit_table(sample_source(source, [item for item in items if item.scheme == scheme]), scheme)


def sample_source(source: Source, items: Sequence[Item]) -> Iterator[Tensor]:
    """Yield evenly spaced rows of some of these linear layers, [n, K] in float32: of each kind those at even distances.

    About `SAMPLE_WEIGHTS` weights of at most `SAMPLE_MATRICES` matrices, of which one is in memory at a time.
    """
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item.parameter.module.rsplit(".", 1)[-1], []).append(item)
    each = max(1, SAMPLE_MATRICES // len(kinds))
    chosen = [item for kind in kinds.values() for item in _evenly(kind, each)][:SAMPLE_MATRICES]
    for item in chosen:
        N, K = item.parameter.shape
        rows = max(1, SAMPLE_WEIGHTS // len(chosen) // K)
        places = torch.tensor(list(_evenly(range(N), rows)))
        yield zero_nonfinite(source.tensor(item.parameter.name)[places].to(torch.float32))


def fit_table(samples: Iterable[Tensor], scheme: Scheme, *, importance: Sequence[Tensor | None] | None = None) -> Table:
    """Return 16 ascending int8 values for these weights.

    Args:
        samples: matrices [n, K], finite; float32, bfloat16 or float16.
        scheme: nl4 with the group size that the table is for.
        importance: of the columns of each sample, [K], as for the search.
    """
    if scheme.name != "nl4":
        raise ValueError(f"{scheme} has no table to fit")
    matrices = list(samples)
    counted = zip(matrices, [None] * len(matrices) if importance is None else importance, strict=True)
    weighed = [(w, h) for w, h in counted if w.any()]
    best, least, idle = DEFAULT_TABLE, math.inf, 0
    known: dict[Table, tuple[float, Values]] = {}
    exact = np.array(DEFAULT_TABLE, dtype=np.float64)
    while weighed and len(known) < ROUNDS and idle < PATIENCE:
        exact = _spread(exact)
        table = _rounded(exact)
        if table not in known:
            known[table] = _round(table, weighed, scheme)
        error, moved = known[table]
        best, least, idle = (table, error, 0) if error < least else (best, least, idle + 1)
        exact = exact + STEP * (moved - np.array(table))
    return best


def _round(table: Table, weighed: Sequence[tuple[Tensor, Tensor | None]], scheme: Scheme) -> tuple[float, Values]:
    """Return the error with a table, and the optimum of its 16 values for the same codes and scales."""
    sums, weights = np.zeros(16), np.zeros(16)
    errors = []
    for matrix, h in weighed:
        tensors = search(matrix, scheme, table=table, importance=h).packed.tensors
        code, scale, row_scale = nl4.unpack(tensors)  # [n, K], [n, G], [n]
        w = matrix.to(torch.float64).numpy()
        step = (scale.double() * row_scale.double()[:, None]).repeat_interleave(scheme.group_size, dim=1).numpy()
        counts = np.ones(w.shape[1]) if h is None else normalised_importance(h, w.shape[1]).double().numpy()
        counts = counts / np.square(w).mean()  # [K]
        codes = code.numpy().ravel()
        sums += np.bincount(codes, (w * step * counts).ravel(), 16)
        weights += np.bincount(codes, (step * step * counts).ravel(), 16)
        errors.append(float((np.square(w - np.take(table, code.numpy()) * step) * counts).sum()))
    moved = np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.array(table, dtype=np.float64))
    return math.fsum(errors), moved


def _spread(values: Values) -> Values:
    """Return the values, ascending, scaled so that the largest is 127: scales absorb any factor."""
    return np.asarray(np.sort(values) * (127 / np.abs(values).max()))


def _rounded(values: Values) -> Table:
    """Return the nearest table to spread values: distinct whole numbers."""
    rounded = np.rint(values).astype(int).tolist()
    for i in range(1, 16):
        rounded[i] = max(rounded[i], rounded[i - 1] + 1)
    rounded[15] = min(rounded[15], 127)
    for i in reversed(range(15)):
        rounded[i] = min(rounded[i], rounded[i + 1] - 1)
    return tuple(rounded)


def _evenly(listed: Sequence[Chosen], count: int) -> Iterator[Chosen]:
    """Yield `count` items, or all if there are fewer, from the middles of equal intervals."""
    count = min(count, len(listed))
    return (listed[(2 * i + 1) * len(listed) // (2 * count)] for i in range(count))
