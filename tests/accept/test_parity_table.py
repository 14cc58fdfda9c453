"""Parity in figures: relative L2 of logits to transformers, float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mixq
from tests.accept.tables import markdown, write
from tests.model.reference_models import MODELS, ReferenceModel, random_ids, relative_l2

pytestmark = pytest.mark.accept
LIMIT = 1e-4


def test_parity(tmp_path: Path) -> None:
    rows, worst = [], 0.0
    for number, name in enumerate(MODELS):
        reference = ReferenceModel(name, tmp_path / str(number))
        model = mixq.load(reference.path, exact=True)
        ids = random_ids(700, seed=number)
        expected = reference.logits(ids)
        prefill = relative_l2(model.forward(ids), expected)
        cache = model.new_kv_cache()
        steps = [model.forward(ids[:650], kv_cache=cache), *(model.forward([i], kv_cache=cache) for i in ids[650:])]
        decode = relative_l2(torch.cat(steps)[650:], expected[650:])
        rows.append([name, f"{prefill:.1e}", f"{decode:.1e}"])
        worst = max(worst, prefill, decode)
    how = (
        "Tiny random models made by transformers, 700 tokens, the last 50 decoded token by token; relative L2 of the "
        f"logits in float32. Limit: {LIMIT:.0e}. Made by `make accept`."
    )
    write("parity", "Parity with transformers", how, markdown(["model", "prefill", "decode"], rows))
    assert worst <= LIMIT
