"""A decode step in one native call against the separate calls, and the router's choice against the reference."""

from __future__ import annotations

import dataclasses
import random
import time

import pytest
import torch
from torch import Tensor

from mixq.kernels import native_library, reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.network_weights import LayerWeights, NetworkWeights, Rows
from mixq.kernels.reference import Weight
from tests.kernels.random_weights import ISAS, generator, kernels_of, random_weight

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")

DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8, "f32": torch.float32}
POSITIONS, V, F = 700, 31, 128
MIXED = {
    "q": "nl4:16",
    "k": "w8:128:bf16",
    "v": "w8:128:bf16",
    "o": "nl4:16",
    "experts": "nl4:32",
    "head": "w8:128:bf16",
}
"""The schemes of the default mix."""


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return kernels_of(request.param, threads=2)


def random_network(
    kinds: dict[str, str], seed: int, *, dense: bool = False, window: int | None = None
) -> NetworkWeights:
    """Return two layers of random shape; the kinds are those of `random_weight`."""
    r, g = random.Random(seed), generator(seed)
    C, KV = r.choice([64, 128]), r.choice([1, 2])
    H = KV * r.choice([2, 4])
    D = 128 * r.randint(1, 3)
    E, A = (1, 1) if dense else r.choice([(8, 2), (4, 1), (3, 3)])
    angle = torch.randn(POSITIONS, C // 2, generator=g)

    def norm() -> Tensor:
        return torch.randn(D, generator=g).bfloat16()

    def weight(name: str, N: int, K: int) -> Weight:
        return random_weight(kinds[name], N, K, r.randrange(1000), size=0.1)

    def layer() -> LayerWeights:
        return LayerWeights(
            norm(),
            [weight("q", H * C, D), weight("k", KV * C, D), weight("v", KV * C, D)],
            weight("o", D, H * C),
            norm(),
            None if dense else torch.randn(E, D, generator=g).bfloat16(),
            [(weight("experts", F, D), weight("experts", D, F), weight("experts", F, D)) for _ in range(E)],
        )

    embedding = torch.randn(V, D, generator=g).bfloat16()
    layers = [layer(), layer()]
    return NetworkWeights(embedding, layers, norm(), weight("head", V, D), angle.cos(), angle.sin(), A, window, 1e-5)


def random_rows(network: NetworkWeights, kv: str, where: list[tuple[int, int]], seed: int) -> list[Rows]:
    """Return rows at each (position, tokens), over caches with random content before the position."""
    g, C = generator(seed), 2 * network.cos.shape[1]
    rows = []
    for position, tokens in where:
        layers = []
        for weights in network.layers:
            KV = weights.qkv_proj[1].shape[0] // C
            data = torch.zeros(2, KV, position + tokens + 1, C, dtype=DTYPES[kv])
            scales = torch.zeros(data.shape[:3]) if kv == "int8" else (None, None)
            layers.append(KVLayer(*data, *scales))
            layers[-1].write(*torch.randn(2, position, KV, C, generator=g), 0)
        rows.append(Rows(layers, position, torch.randint(V, (tokens,), generator=g).tolist()))
    return rows


def tensors_of(layer: KVLayer) -> list[Tensor | None]:
    return [getattr(layer, field.name) for field in dataclasses.fields(layer)]


def copied(rows: list[Rows]) -> list[Rows]:
    return [
        row._replace(kv=[KVLayer(*[t if t is None else t.clone() for t in tensors_of(layer)]) for layer in row.kv])
        for row in rows
    ]


def separately(
    kernels: NativeKernels, network: NetworkWeights, rows: list[Rows], *, all_logits: bool
) -> tuple[Tensor, Tensor]:
    token_ids = torch.tensor([token_id for row in rows for token_id in row.token_ids])
    T, C = len(token_ids), 2 * network.cos.shape[1]
    x, chosen = network.embed_tokens[token_ids].float(), []
    for index, layer in enumerate(network.layers):
        normed = kernels.rms_norm(x, layer.input_layernorm, network.eps)
        q, k, v = (y.view(T, -1, C) for y in kernels.linears(normed, layer.qkv_proj))
        attended, start = [], 0
        for kv, position, ids in rows:
            own, end = slice(start, start + len(ids)), position + len(ids)
            start = own.stop
            cos, sin = network.cos[position:end], network.sin[position:end]
            rotated = kernels.rotary_append(q[own], k[own], v[own], cos, sin, kv[index], position)
            attended.append(kernels.attention_rows(rotated, kv[index], position, network.window))
        h = x + kernels.linear(torch.cat(attended).reshape(T, -1), layer.o_proj)
        normed = kernels.rms_norm(h, layer.post_attention_layernorm, network.eps)
        weights, ids = torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.int64)
        if layer.gate is not None:
            weights, ids = kernels.route(normed, layer.gate, network.num_experts_per_tok)
        x = h + kernels.experts(normed, layer.experts, ids, weights)
        chosen.append(ids)
    if not all_logits:
        x = x[torch.tensor([len(row.token_ids) for row in rows]).cumsum(0) - 1]
    return kernels.linear(kernels.rms_norm(x, network.norm, network.eps), network.lm_head), torch.stack(chosen)


def check_same_bits(
    kernels: NativeKernels, network: NetworkWeights, kv: str, where: list[tuple[int, int]], *, all_logits: bool = True
) -> None:
    rows = random_rows(network, kv, where, seed=4)
    others = copied(rows)
    result = kernels.step(network, rows, all_logits=all_logits)
    logits, chosen = separately(kernels, network, others, all_logits=all_logits)
    assert result is not None
    assert torch.equal(result[1], chosen)
    assert torch.equal(result[0], logits)
    for ours, other in zip(rows, others, strict=True):
        for layer, wanted in zip(ours.kv, other.kv, strict=True):
            for tensor, expected in zip(tensors_of(layer), tensors_of(wanted), strict=True):
                assert tensor is expected is None or torch.equal(tensor, expected)


@pytest.mark.parametrize("kv", DTYPES)
@pytest.mark.parametrize("kinds", [MIXED, dict.fromkeys(MIXED, "bf16"), dict.fromkeys(MIXED, "w4:32:f16")])
@pytest.mark.parametrize("where", [[(0, 1)], [(600, 1)], [(5, 8)], [(0, 2), (530, 1), (31, 4)], [(9, 1)] * 8])
def test_one_call_gives_the_bits_of_the_separate_ones(
    kernels: NativeKernels, kv: str, kinds: dict[str, str], where: list[tuple[int, int]]
) -> None:
    for seed in range(3):
        check_same_bits(kernels, random_network(kinds, seed), kv, where, all_logits=seed == 0)


@pytest.mark.parametrize("window", [1, 3, 520])
def test_a_sliding_window(kernels: NativeKernels, window: int) -> None:
    check_same_bits(kernels, random_network(MIXED, 5, window=window), "bf16", [(0, 3), (600, 2)])


def test_a_dense_network(kernels: NativeKernels) -> None:
    check_same_bits(kernels, random_network(MIXED, 6, dense=True), "bf16", [(4, 3)])


def test_the_ids_of_a_step_are_checked() -> None:
    network = random_network(MIXED, 8)
    (row,) = random_rows(network, "bf16", [(0, 2)], seed=1)
    for bad in (-1, V):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            kernels_of(ISAS[-1]).step(network, [row._replace(token_ids=[0, bad])], all_logits=False)


@pytest.mark.parametrize("field", ["embed_tokens", "norm", "lm_head", "input_layernorm", "gate", "o_proj"])
def test_weights_that_need_torch_have_no_single_call(field: str) -> None:
    network = random_network(dict.fromkeys(MIXED, "bf16"), 8)
    other = network
    if hasattr(network, field):
        other = dataclasses.replace(network, **{field: getattr(network, field).half()})
    else:
        first, second = network.layers
        other = dataclasses.replace(
            network, layers=[first, dataclasses.replace(second, **{field: getattr(second, field).half()})]
        )
    kernels, rows = kernels_of(ISAS[-1]), random_rows(network, "bf16", [(0, 1)], seed=1)
    assert kernels.step(network, rows, all_logits=False) is not None
    assert kernels.step(other, rows, all_logits=False) is None


def test_a_cache_that_needs_torch_has_no_single_call() -> None:
    network = random_network(MIXED, 8)
    (row,) = random_rows(network, "bf16", [(0, 1)], seed=1)
    narrow = [KVLayer(*[torch.cat([t, t], dim=-1)[..., : t.shape[-1]] for t in (kv.keys, kv.values)]) for kv in row.kv]
    assert kernels_of(ISAS[-1]).step(network, [Rows(narrow, 0, [1])], all_logits=False) is None


def test_descriptions_of_caches_go_with_the_caches() -> None:
    """A later cache may have the address of an earlier one."""
    kernels, network = NativeKernels(1), random_network(MIXED, 9)
    for _ in range(20):
        check_same_bits(kernels, network, "int8", [(3, 1), (7, 1)])
    assert len(kernels._rows) == 0


def scores_for(kernels: NativeKernels, scores: Tensor, A: int) -> tuple[Tensor, Tensor]:
    """Route with given scores: the router's weight is the identity."""
    return kernels.route(scores, torch.eye(scores.shape[1]), A)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 30.0, 3e4])
@pytest.mark.parametrize(("E", "A"), [(8, 2), (8, 8), (1, 1), (5, 3), (64, 6)])
def test_the_choice_is_the_references(kernels: NativeKernels, size: float, E: int, A: int) -> None:
    scores = torch.randn(40, E, generator=generator(E)) * size
    weights, ids = scores_for(kernels, scores, A)
    wanted, wanted_ids = reference.route(scores, A)
    assert torch.equal(ids, wanted_ids)
    assert torch.allclose(weights, wanted, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("A", [1, 2, 4])
def test_of_equal_scores_the_lower_number_comes_first(kernels: NativeKernels, A: int) -> None:
    scores = torch.tensor([[0.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0], [-1.0, 5.0, -1.0, 5.0], [0.0, -0.0, 0.0, -0.0]])
    expected = torch.tensor([[1, 2, 0, 3], [0, 1, 2, 3], [1, 3, 0, 2], [0, 1, 2, 3]])[:, :A]
    assert torch.equal(scores_for(kernels, scores, A)[1], expected)
    assert torch.equal(reference.route(scores, A)[1], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_choice_among_what_is_not_finite(kernels: NativeKernels, bad: float) -> None:
    """Ids are distinct and within range, whatever the scores: they index memory."""
    for E in range(1, 6):
        scores = torch.full((1, E), bad)  # x in eye(E) gives NaN everywhere: so give the scores themselves
        ids, weights = torch.empty(1, E, dtype=torch.int64), torch.empty(1, E)
        for place in range(E):
            for filled in (scores, torch.arange(float(E))[None].index_fill(1, torch.tensor([place]), bad)):
                choose = kernels._library.mixq_choose
                choose(kernels.context, filled.data_ptr(), 1, E, E, ids.data_ptr(), weights.data_ptr())
                wanted, wanted_ids = reference.route(filled, E)
                assert torch.equal(ids, wanted_ids)
                assert torch.allclose(weights, wanted, equal_nan=True, atol=1e-30)


def test_the_time_of_a_step_is_counted_once() -> None:
    kernels, network = NativeKernels(1), random_network(MIXED, 10)
    rows = random_rows(network, "bf16", [(0, 8)], seed=1)
    kernels.step(network, rows, all_logits=True)
    before, begun = kernels.busy_ns(), time.perf_counter_ns()
    for _ in range(10):
        kernels.step(network, rows, all_logits=True)
    assert 0 < kernels.busy_ns() - before <= time.perf_counter_ns() - begun
