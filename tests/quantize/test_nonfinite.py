"""Weights that cannot be stored are counted and zeroed in every dtype that a checkpoint may have."""

from __future__ import annotations

import pytest
import torch

from mixq.quantize import nonfinite
from mixq.quantize.nonfinite import count_nonfinite, zero_nonfinite
from tests.checkpoints import DTYPES


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_found_and_zeroed_in_every_dtype(
    dtype: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "BLOCK", 16)
    tensor = torch.ones(5, 7, dtype=DTYPES[dtype])
    tensor[2, 4] = tensor[4, 6] = float(value)
    assert count_nonfinite(tensor) == (2, (2, 4))
    zeroed = zero_nonfinite(tensor)
    assert zeroed.dtype == tensor.dtype
    assert zeroed[2, 4] == zeroed[4, 6] == 0
    assert zeroed.sum() == 33
    assert count_nonfinite(zeroed) == (0, ())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_that_can_be_stored_is_kept(dtype: str) -> None:
    largest = min(torch.finfo(DTYPES[dtype]).max, torch.finfo(torch.bfloat16).max)
    tensor = torch.tensor([largest, -largest], dtype=DTYPES[dtype])
    assert count_nonfinite(tensor) == (0, ())
    assert torch.equal(zero_nonfinite(tensor), tensor)
