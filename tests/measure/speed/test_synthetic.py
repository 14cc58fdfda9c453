"""Synthetic models: of the true sizes, finite, of their own memory, and refused where they cannot be had."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from mixq.errors import DoesNotFitError, UsageError
from mixq.formats.architecture import parameters
from mixq.formats.packed import PackedLinear, packed_bytes
from mixq.measure.speed import synthetic
from mixq.measure.speed.synthetic import Recipe, SyntheticWeights, synthetic_model
from mixq.models.presets import PRESETS

TINY = PRESETS["mixtral-8x7b"] | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
TINY_DENSE = {key: value for key, value in TINY.items() if not key.startswith("num_") or "experts" not in key} | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_hidden_layers": 2,
}

MIXES = ["default", "all-nl4", "experts=nl4:16,o=w8,lm_head=bf16", "w4", "w8", "nf4", "bf16"]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("raw", [TINY, TINY_DENSE], ids=["moe", "dense"])
def test_runs_and_keeps_the_variance(raw: dict[str, Any], mix: str) -> None:
    model = synthetic_model(raw, mix=mix, threads=1)
    prompt = list(range(1, 40))
    for logits in (model.forward(prompt), model.forward(prompt[:3])):
        assert logits.isfinite().all()
        assert 0.5 < float(logits.std()) < 2.0
    answer = model.generate(prompt, max_tokens=5, ignore_eos=True, stream=False)
    assert answer.stats.decode_tokens == 4


@pytest.mark.parametrize("mix", MIXES)
def test_every_tensor_has_the_bytes_of_its_scheme(mix: str) -> None:
    weights = SyntheticWeights.make(TINY, mix=mix)
    total = 0
    for parameter in parameters(weights.config):
        if not parameter.quantizable:
            total += weights.tensor(parameter.name).nbytes
            continue
        linear = weights.linear(parameter.module)
        assert tuple(linear.shape) == parameter.shape
        if isinstance(linear, PackedLinear):
            assert linear.nbytes == packed_bytes(linear.scheme, linear.shape)
            with pytest.raises(KeyError):
                weights.tensor(parameter.name)
        total += linear.nbytes
    assert weights.nbytes == total
    assert (weights.mix is None) == (mix == "bf16")


def test_no_two_tensors_share_memory_or_values() -> None:
    weights = SyntheticWeights.make(TINY)
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in weights.stored.values())
    assert all(start % synthetic.ALIGNMENT == 0 for start, _ in places)
    assert all(start + size <= later for (start, size), (later, _) in pairwise(places))
    codes = [tensor for name, tensor in weights.stored.items() if name.endswith("w1.weight_codes")]
    assert not any(torch.equal(codes[0], other) for other in codes[1:])


def test_the_repeated_block_fills_every_element() -> None:
    big = TINY | {"intermediate_size": 1 << 17, "num_local_experts": 2, "num_hidden_layers": 1}
    weights = SyntheticWeights.make(big)
    for name, tensor in weights.stored.items():
        if name.endswith("codes"):
            counts = torch.bincount(tensor.view(-1)[-4096:].int(), minlength=256)
            assert counts.max() < 100, name  # the end of the tensor is random too, not zeros
            assert not torch.equal(tensor[0], tensor[1])


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (SyntheticWeights.make(TINY, seed=seed) for seed in (1, 1, 2))
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight_codes"
    assert torch.equal(first.stored[name], again.stored[name])
    assert not torch.equal(first.stored[name], other.stored[name])


def test_presets_have_their_true_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def refuse(recipe: Recipe, needed: int) -> None:
        asked[recipe.name] = needed
        raise DoesNotFitError("not now")

    monkeypatch.setattr(synthetic, "_check_memory", refuse)
    for name in PRESETS:
        with pytest.raises(DoesNotFitError):
            synthetic_model(name)
    assert asked["mixtral-8x7b"] == pytest.approx(25.3e9, rel=0.01)
    assert asked["mixtral-8x22b"] == pytest.approx(76e9, rel=0.03)


def test_layers() -> None:
    assert synthetic_model(TINY, layers=1).config.num_hidden_layers == 1
    for wrong in (0, 3, True):
        with pytest.raises(UsageError, match="from 1 to 2"):
            synthetic_model(TINY, layers=wrong)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'mixtral-8x7b'"):
        synthetic_model("Mixtral-8x7")
    with pytest.raises(UsageError, match="Did you mean 'all-nl4'"):
        synthetic_model(TINY, mix="al-nl4")
    with pytest.raises(UsageError, match="Did you mean 'threads'"):
        synthetic_model(TINY, thread=2)


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "available_memory", lambda: 4 * 10**9)
    with pytest.raises(DoesNotFitError) as caught:
        synthetic_model("mixtral-8x7b", layers=8)
    assert "needs 6." in caught.value.message
    assert "4.0 GB are free" in caught.value.message
    assert caught.value.hint == "4 layers fit: --layers 4."
    monkeypatch.setattr(synthetic, "available_memory", lambda: 4 * 10**8)
    with pytest.raises(DoesNotFitError) as caught:
        synthetic_model("mixtral-8x7b", layers=8)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Not even one layer fits")
