"""The error of every scheme: on Gaussian and heavy-tailed weights, and on rows that one large group might spoil."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from mixq.formats.packed import packed_bytes
from mixq.formats.scheme import Scheme
from mixq.quantize.scale_search import search
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
SEED, N, K = 1, 256, 4096
SCHEMES = ["nl4:16", "nl4:32", "nl4:64", "w4:32", "w4:64", "w4:128", "w8:32", "w8:64", "w8:128", "nf4:64"]
LIMITS = {"nl4:32": 0.0054, "nl4:16": 0.0041, "w4:32": 0.0067}


def bits_per_weight(scheme: Scheme, shape: tuple[int, int]) -> float:
    """Return the bits per weight of a scheme, scales included."""
    return packed_bytes(scheme, shape) * 8 / math.prod(shape)


def relative_squared_error(weight: Tensor, restored: Tensor) -> float:
    return float((weight.double() - restored.double()).square().sum() / weight.double().square().sum())


def test_error_of_every_scheme() -> None:
    g = torch.Generator().manual_seed(SEED)
    gaussian = torch.randn(N, K, generator=g)
    chi_squared = torch.randn(5, N, K, generator=g).square().sum(0)
    student = torch.randn(N, K, generator=g) / (chi_squared / 5).sqrt()  # Student's t, 5 degrees of freedom
    rows = []
    for text in SCHEMES:
        scheme = Scheme.parse(text)
        rest = slice(scheme.group_size, None)
        outlier = gaussian.clone()
        outlier[:, : scheme.group_size] *= 50
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            on_gaussian = search(gaussian, scheme)
            seconds.append(time.perf_counter() - started)
        rate = gaussian.numel() / min(seconds)
        errors = [
            relative_squared_error(gaussian, on_gaussian.packed.dequantize()),
            relative_squared_error(student, search(student, scheme).packed.dequantize()),
            relative_squared_error(outlier[:, rest], search(outlier, scheme).packed.dequantize()[:, rest]),
        ]
        figures = [f"{1000 * e:.3f}" for e in errors]
        rows.append([f"`{text}`", f"{bits_per_weight(scheme, (N, K)):.2f}", *figures, f"{rate / 1e6:.0f}"])
        assert errors[0] <= LIMITS.get(text, 1.0), (text, errors[0])
        assert errors[2] <= 1.5 * errors[0], (text, errors)
    how = (
        f"Relative squared error, times 1000, of {N} x {K} random weights (seed {SEED}), of three distributions: "
        "Gaussian; Student's t with 5 degrees of freedom; Gaussian with the first group of each row 50 times larger, "
        "where the error is that of the other groups. Speed: 1 thread, best of 3; nf4 in torch, the others in C++. "
        "Made by `make accept`."
    )
    header = ["scheme", "bits/weight", "Gaussian", "Student t5", "next to a large group", "M weights/s"]
    write("schemes", "Quantization error of all schemes", how, markdown(header, rows))
