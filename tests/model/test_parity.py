"""Logits equal transformers' on tiny random models: float32, prefill and token-by-token decode alike."""

from __future__ import annotations

import pytest
import torch

import mixq
from mixq.config import PREFILL_CHUNK
from tests.model.reference_models import MODELS, ReferenceModel, random_ids, relative_l2


@pytest.fixture(scope="module", params=list(MODELS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel(request.param, tmp_path_factory.mktemp("reference"))


def test_prefill_equals_transformers(reference: ReferenceModel) -> None:
    ids = random_ids(41, seed=1)
    assert relative_l2(mixq.load(reference.path, exact=True).forward(ids), reference.logits(ids)) < 1e-4


def test_decode_token_by_token_equals_transformers(reference: ReferenceModel) -> None:
    ids = random_ids(41, seed=2)
    ours = mixq.load(reference.path, exact=True)
    cache = ours.new_kv_cache()
    steps = [ours.forward(ids[:20], kv_cache=cache), *(ours.forward([i], kv_cache=cache) for i in ids[20:])]
    assert relative_l2(torch.cat(steps), reference.logits(ids)) < 1e-4


def test_prompt_longer_than_a_prefill_chunk_equals_transformers(reference: ReferenceModel) -> None:
    ids = random_ids(PREFILL_CHUNK + 77, seed=3)
    assert relative_l2(mixq.load(reference.path, exact=True).forward(ids), reference.logits(ids)) < 1e-4


def test_bf16_arithmetic_stays_near_float32(reference: ReferenceModel) -> None:
    """Without `exact`: bf16 matrices and KV cache. A random router has many near-ties; unrelated logits give 1.4."""
    ids = random_ids(41, seed=4)
    truth = reference.logits(ids)
    for kv in ("bf16", "int8"):
        model = mixq.load(reference.path, kv=kv)
        error = (model.forward(ids) - truth).norm(dim=-1) / truth.norm(dim=-1)
        assert error.median() < (0.6 if model.config.is_moe else 0.05)
