"""The scale search: scales and codes of a linear layer by squared error; the reference for the search in C++.

Contract: `search(weight, scheme)` turns a matrix [N, K] into the scheme's packed tensors and returns their error. It
is `reference_search`, in torch, or the bit-identical search in C++ if it was built (see `native_search`). The result
is a function of the weights alone: it depends neither on the number of threads nor on the number of rows in a
block, because every sum is a fixed tree of float32 additions within a row (`tree_sum`) and no multiplication is fused
with an addition.

Method: for each group of weights six start scales between 0.8 and 1.15 of the largest magnitude, with both signs (a
table need not be symmetric, and int4 reaches -8 but only 7); each start gives codes, and the codes one least-squares
scale; the best of the twelve has the least squared error, `sum(w²) - sum(wv)²/sum(v²)` for code values v. Stored scales
are rounded (bf16 or f16, or int8 times a row scale), so the codes are chosen again for the rounded scale. For `nl4` the
rounded scales are searched too, see `_round_to_row_scale`.

With an importance h of each column (the mean square of that input, for instance), all three sums weight column k by
h[k]: `sum(hw²) - sum(hwv)²/sum(hv²)`, to first order the error of the linear layer's output. The error reported is
always the plain error of the weights.

Axes: N rows (outputs), K columns (inputs), G groups in a row, g weights in a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixq.errors import UsageError
from mixq.formats import int_groups, nf4, nl4
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library
from mixq.quantize import native_search
from mixq.quantize.quantized import Loss, Quantized, summed_up
from mixq.quantize.threads import map_in_threads, serial_operations

START_SCALES = (0.80, 0.87, 0.94, 1.01, 1.08, 1.15)
"""Start scales, relative to the scale at which the largest magnitude just fits."""

ROW_STEPS = tuple(range(127, 90, -3))
"""Values to try for the int8 scale of a row's largest group, which determine the row scale."""

ROUNDING_LOSS = 1.01
"""Rows whose error grows by more than this factor with int8 scales, as with one large group, get `ROW_STEPS`."""

BLOCK_WEIGHTS = 1 << 18
"""Weights of a block of rows: about 1 MiB in float32, so that all passes run in the cache."""

LEAST_IMPORTANCE = 2.0**-10
"""Smallest importance of a column, as a share of the mean: other texts may use channels that the calibration text does
not."""

TINY = 2.0**-40
"""Groups below this, where the largest of the row is about 1, are far below what int8 scales can reach."""


class IntegerLevels:
    """Integers of `bits` bits, ties to even; the codes are the numbers, int8.

    Here and in `TableLevels` `limit` is the largest magnitude; `nearest` returns the code value nearest to each element
    of a float32 tensor, which it may overwrite, exact for every finite number; `codes` returns their codes.
    """

    def __init__(self, bits: int) -> None:
        self.limit = float(1 << (bits - 1))

    def nearest(self, x: Tensor) -> Tensor:
        return x.round_().clamp_(-self.limit, self.limit - 1)

    def codes(self, values: Tensor) -> Tensor:
        return values.to(torch.int8)


class TableLevels:
    """The 16 ascending int8 values of an nl4 table, ties to the larger value; codes are indices in the table, uint8.

    Midpoints between int8 values are multiples of one half, so the nearest value depends on floor(2x) alone and is read
    from a table of 512: several times faster than a binary search.
    """

    def __init__(self, table: Tensor) -> None:
        values = table.to(torch.int32)
        self.limit = float(values.abs().max())
        halves = torch.arange(-256, 256, dtype=torch.int32)
        place = torch.bucketize(halves, (values[1:] + values[:-1]), right=True)  # 2x >= a + b: the larger value
        self._nearest = values.to(torch.float32)[place]
        self._code = torch.zeros(256, dtype=torch.uint8)
        self._code[(values + 128).long()] = torch.arange(16, dtype=torch.uint8)

    def nearest(self, x: Tensor) -> Tensor:
        place = x.mul_(2).floor_().clamp_(-256, 255).add_(256).to(torch.int32)
        return self._nearest.index_select(0, place.view(-1)).view(x.shape)

    def codes(self, values: Tensor) -> Tensor:
        return self._code.index_select(0, (values + 128).to(torch.int32).view(-1)).view(values.shape)


Levels = IntegerLevels | TableLevels


def search(
    weight: Tensor,
    scheme: Scheme,
    *,
    table: Sequence[int] = nl4.DEFAULT_TABLE,
    scale_dtype: torch.dtype = torch.bfloat16,
    importance: Tensor | None = None,
    block_weights: int = BLOCK_WEIGHTS,
) -> Quantized:
    """Quantize a linear layer's weight [N, K].

    Args:
        weight: float32, bfloat16 or float16 (converted to float32 block by block), finite.
        scheme: layout and group size; K must be a multiple of the group.
        table: the code values of `nl4`, 16 ascending int8 values.
        scale_dtype: type of the scales of `w4` and `w8`; with `nf4`, the type to dequantize to.
        importance: float32 [K], the weight of each column's error; only ratios matter, and values far below the mean
            are raised to `LEAST_IMPORTANCE` of it. None weights all equally. Not used by `nf4`.
        block_weights: approximate number of weights in a block of rows; the result does not depend on it.

    Raises:
        UsageError: not a matrix, or K is not a multiple of the group size.
    """
    if weight.dim() != 2 or 0 in weight.shape:
        raise UsageError(f"only matrices can be quantized, not a tensor of shape {list(weight.shape)}.")
    K = weight.shape[1]
    if K % scheme.group_size:
        raise UsageError(f"rows of {K} weights do not divide into groups of {scheme.group_size}.")
    h = None if importance is None or scheme.name == "nf4" else normalised_importance(importance, K)
    native = scheme.name in native_search.SCHEMES and native_library.library() is not None
    find = native_search.search if native else reference_search
    return find(weight, scheme, table, scale_dtype, max(1, block_weights // K), h)


def reference_search(
    weight: Tensor,
    scheme: Scheme,
    table: Sequence[int] = nl4.DEFAULT_TABLE,
    scale_dtype: torch.dtype = torch.bfloat16,
    block_rows: int = 1 << 10,
    importance: Tensor | None = None,
) -> Quantized:
    """As `search`, in torch; `search` has checked the shape and normalized `importance`."""
    (N, K), g = weight.shape, scheme.group_size
    h = None if importance is None else importance.view(K // g, g)

    def work(start: int) -> tuple[tuple[Tensor, ...], Loss]:
        w = weight[start : start + block_rows].to(torch.float32).view(-1, K // g, g)  # [n, G, g]
        if scheme.name == "nl4":
            return _nl4_rows(w, TableLevels(nl4.table_tensor(table)), h)
        if scheme.name == "nf4":
            return _nf4_rows(w, scale_dtype)
        return _integer_rows(w, IntegerLevels(scheme.bits), scale_dtype, h)

    with serial_operations() as threads:
        found = map_in_threads(work, range(0, N, block_rows), threads)
    codes, *scales = (torch.cat(parts) for parts in zip(*(tensors for tensors, _ in found), strict=True))
    codes, losses = codes.view(N, K), [loss for _, loss in found]
    if scheme.name == "nl4":
        tensors = nl4.pack(codes, *scales)
        return summed_up(PackedLinear(scheme, (N, K), tensors, nl4.table_tensor(table)), losses)
    if scheme.name == "nf4":
        return summed_up(PackedLinear(scheme, (N, K), nf4.pack(codes, scales[0].view(-1), g, scale_dtype)), losses)
    return summed_up(PackedLinear(scheme, (N, K), int_groups.pack(codes, scales[0], scheme.bits)), losses)


def normalised_importance(importance: Tensor, K: int) -> Tensor:
    """Return importance [K] over its mean, at least `LEAST_IMPORTANCE`; all ones if it is all zero.

    Raises:
        ValueError: not float32 [K], or negative, infinite or NaN somewhere.
    """
    if importance.dtype != torch.float32 or importance.shape != (K,):
        raise ValueError(f"importance must be float32 [{K}], not {importance.dtype} {list(importance.shape)}")
    if not bool((importance >= 0).all()) or not bool(importance.isfinite().all()):
        raise ValueError("importance must be finite and not negative")
    mean = importance.double().mean()
    if mean <= 0:
        return torch.ones(K)
    return (importance.double() / mean).clamp_min(LEAST_IMPORTANCE).to(torch.float32)


def _nl4_rows(w: Tensor, levels: TableLevels, h: Tensor | None) -> tuple[tuple[Tensor, ...], Loss]:
    """Return codes [n, G, g], int8 scales [n, G] and row scales [n] of rows [n, G, g], and their error."""
    # table value * scale can reach 128 * 127: keep the product with the row scale below infinity, in bf16 too.
    ceiling = torch.finfo(torch.bfloat16).max / (128 * 127)
    exponent = _exponent(w.abs().amax(dim=(1, 2), keepdim=True))  # [n, 1, 1]
    w = w * power_of_two(-exponent)
    q, r = _round_to_row_scale(w, h, levels)  # [n, G, 1], [n, 1, 1]
    stored = (r * power_of_two(exponent)).clamp_(max=ceiling)
    step = q * (stored * power_of_two(-exponent))
    values = levels.nearest(w * _inverse(step))
    return (levels.codes(values), q.squeeze(-1).to(torch.int8), stored.view(-1)), _loss(w, values * step, exponent)


def _integer_rows(
    w: Tensor, levels: IntegerLevels, dtype: torch.dtype, h: Tensor | None
) -> tuple[tuple[Tensor, ...], Loss]:
    """Return codes [n, G, g] and scales [n, G] of rows [n, G, g], and their error."""
    # -8 * scale (or -128 * scale) must stay below infinity, in bf16 too; the scale itself below its own type's.
    ceiling = min(torch.finfo(torch.bfloat16).max / levels.limit, torch.finfo(dtype).max)
    exponent = _exponent(w.abs().amax(dim=-1, keepdim=True))  # [n, G, 1]
    w = w * power_of_two(-exponent)
    s = best_scales(w, levels, h) * power_of_two(exponent)
    stored = s.clamp_(-ceiling, ceiling).to(dtype)  # [n, G, 1]
    step = stored.to(torch.float32) * power_of_two(-exponent)
    values = levels.nearest(w * _inverse(step))
    return (levels.codes(values), stored.squeeze(-1)), _loss(w, values * step, exponent)


def _nf4_rows(w: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Loss]:
    """Return codes [n, G * g] and largest magnitudes [n, G] of rows [n, G, g], and their error.

    bitsandbytes' rule: a group's scale is its largest magnitude, and nothing is searched.
    """
    tensors = nf4.quantize(w.view(len(w), -1), w.shape[-1], dtype)
    codes, maxima = nf4.unpack(tensors)
    restored = nf4.dequantize(tensors).view(w.shape)
    exponent = _exponent(w.abs().amax(dim=-1, keepdim=True))
    loss = _loss(w * power_of_two(-exponent), restored * power_of_two(-exponent), exponent)
    return (codes, maxima.view(len(w), -1)), loss


def best_scales(w: Tensor, levels: Levels, h: Tensor | None = None) -> Tensor:
    """Return the best unrounded scale of each group: [n, G, g] to [n, G, 1].

    `w` is normalized (largest 1 to 4); `h` [G, g] is the importance of its columns.
    """
    s, gain = _best_of_sign(w, h, levels, 1.0)
    other_s, other_gain = _best_of_sign(w, h, levels, -1.0)
    return torch.where(other_gain > gain, other_s, s)


def _weighed(x: Tensor, h: Tensor | None) -> Tensor:
    return x if h is None else x * h


def _best_of_sign(w: Tensor, h: Tensor | None, levels: Levels, sign: float) -> tuple[Tensor, Tensor]:
    """Return the best scale of one sign and its gain: the squared sum that the codes explain, [n, G, 1] each."""
    fits = w.abs().amax(dim=-1, keepdim=True).clamp_min_(TINY) / levels.limit
    hw = _weighed(w, h)
    best_s = best_gain = torch.empty(0)
    for start in START_SCALES:
        v = levels.nearest(w * (1.0 / (fits * (sign * start))))  # [n, G, g]
        wv, vv = tree_sum(hw * v), tree_sum(_weighed(v, h) * v).clamp_min_(TINY)
        s = wv / vv  # least squares for these codes
        gain = wv * s
        if start == START_SCALES[0]:
            best_s, best_gain = s, gain
        else:
            better = gain > best_gain
            best_s, best_gain = torch.where(better, s, best_s), torch.where(better, gain, best_gain)
    return best_s, best_gain


def _round_to_row_scale(w: Tensor, h: Tensor | None, levels: Levels) -> tuple[Tensor, Tensor]:
    """Return int8 scales q (as float32) [n, G, 1] and row scales r [n, 1, 1] for normalized weights [n, G, g].

    A group's scale becomes q * r, so in a row with one large group the q of the others are small: 2 or 3 where 2.5
    would be best. So q is searched by true error among the whole numbers around the best scale of either sign, and 0;
    and in rows whose error grows by the rounding, r is searched too.
    """
    positive, gain = _best_of_sign(w, h, levels, 1.0)
    negative, other_gain = _best_of_sign(w, h, levels, -1.0)
    best = torch.where(other_gain > gain, negative, positive)  # [n, G, 1]
    largest = best.abs().amax(dim=1, keepdim=True)  # [n, 1, 1]
    ww = tree_sum(_weighed(w, h) * w)  # [n, G, 1]
    ideal = _row_sum(ww - torch.maximum(gain, other_gain))  # [n, 1, 1]

    r = largest / 127
    q, error = _best_integers(w, ww, h, levels, r, (positive, negative), reach=0)
    lossy = (error > ideal * ROUNDING_LOSS).view(-1).nonzero().view(-1)
    if len(lossy) == 0:
        return q, r
    w, ww, largest = w[lossy], ww[lossy], largest[lossy]
    signs = (positive[lossy], negative[lossy])
    best_q, best_error, best_r = q[lossy], error[lossy], r[lossy]
    for step in ROW_STEPS:
        trial_r = largest / step
        trial_q, error = _best_integers(w, ww, h, levels, trial_r, signs, reach=2)
        better = error < best_error  # [m, 1, 1]
        best_q, best_r = torch.where(better, trial_q, best_q), torch.where(better, trial_r, best_r)
        best_error = torch.where(better, error, best_error)
    q[lossy], r[lossy] = best_q, best_r
    return q, r


def _best_integers(
    w: Tensor, ww: Tensor, h: Tensor | None, levels: Levels, r: Tensor, scales: tuple[Tensor, ...], *, reach: int
) -> tuple[Tensor, Tensor]:
    """Return the int8 scale of each group with the least error at row scale r, and the error of each row.

    Tried are 0 (whose error is all of `ww`) and, for each of `scales`, the whole numbers on both sides of it and
    `reach` further ones either way.
    """
    q, least = torch.zeros_like(ww), ww
    inverse_r = _inverse(r)
    for s in scales:
        below = (s * inverse_r).floor_()
        for offset in range(-reach, reach + 2):
            trial = (below + offset).clamp_(-127, 127)
            step = trial * r
            lost = w - levels.nearest(w * _inverse(step)) * step
            error = tree_sum(_weighed(lost, h) * lost)
            better = error < least
            q, least = torch.where(better, trial, q), torch.where(better, error, least)
    return q, _row_sum(least)


def _loss(w: Tensor, restored: Tensor, exponent: Tensor) -> Loss:
    """Compare normalized weights with their dequantized values [n, G, g], both divided by 2**exponent."""
    error = tree_sum((w - restored).square_()).double()  # [n, G, 1]
    energy = tree_sum(w * w).double()
    filled = energy > 0
    relative = torch.where(filled, error / energy.clamp_min(1e-300), 0.0)
    unit = power_of_two(exponent).double().square()
    rows = [_row_sum(x).view(-1).tolist() for x in (error * unit, energy * unit, relative)]
    return Loss(rows[0], rows[1], rows[2], int(filled.sum()))


def tree_sum(x: Tensor) -> Tensor:
    """Sum the last axis, keeping it, by adding its upper half to its lower half until one is left.

    The order of a SIMD register's horizontal sum, and independent of the library. An odd length is padded with 0.
    """
    while (size := x.shape[-1]) > 1:
        if size % 2:
            x = torch.nn.functional.pad(x, (0, 1))
            size += 1
        x = x[..., : size // 2] + x[..., size // 2 :]
    return x


def _row_sum(x: Tensor) -> Tensor:
    """[n, G, 1] to [n, 1, 1]."""
    return tree_sum(x.transpose(1, 2))


def power_of_two(exponent: Tensor) -> Tensor:
    """Return exactly 2**exponent in float32, for int32 exponents from -126 to 127 (pow need not be exact)."""
    return ((exponent + 127) << 23).view(torch.float32)


def _exponent(largest: Tensor) -> Tensor:
    """Return the exponent that brings `largest` to 1 at least and 4 at most; 0 and denormals are left small."""
    return (torch.frexp(largest).exponent - 1).clamp_(-126, 126)


def _inverse(x: Tensor) -> Tensor:
    """Return 1/x, and 0 where x is 0 or so small that 1/x is infinite."""
    inverse = 1.0 / x
    return torch.where(inverse.abs() == math.inf, 0.0, inverse)
