"""A captured decode step gives the bits of one that is run anew, wherever the experts are."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

import mixq
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.experts.offload import ExpertOffload
from mixq.experts.routing import parse_routing
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

CONTEXT = 64
PROMPT = [1, *range(20, 40)]
NEXT = [30, 60, 90, 12, 7, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_tiny_mixtral(path / "source", ffn=128, layers=3, vocab=100)
    quantize(path / "source", path / "nl4")
    return path / "nl4"


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedAccelerator, "captures", True)


def offload_of(model: mixq.Model) -> ExpertOffload:
    assert model.placement.offload is not None
    return model.placement.offload


def step_of(network: Mixtral) -> bool:
    assert network._steps is not None
    ((_, step),) = network._steps._steps.values()
    return step.whole


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("slots", [4, 2, 0])
def test_captured_steps_have_the_same_bits(folder: Path, capturing: None, slots: int, kv: str) -> None:
    plain = mixq.load(folder, device="cpu", context=CONTEXT, threads=1, kv=kv)
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1, kv=kv, miss="cpu")
    offload_of(model).resize([slots] * 3)
    caches = plain.new_kv_cache(), model.new_kv_cache()
    for ids in (PROMPT, *([token] for token in NEXT)):
        want, got = (m.network.forward([_chunk(ids, c)]) for m, c in zip((plain, model), caches, strict=True))
        assert torch.equal(want, got)
        assert plain.network.chosen_experts() == model.network.chosen_experts()
    assert caches[1].length == len(PROMPT) + len(NEXT)
    assert step_of(model.network) == (slots == 4)
    counters = offload_of(model).telemetry.counters
    assert counters.requests == len(NEXT) * 3 * 2
    if slots == 4:
        assert counters.hits == counters.requests


def _chunk(ids: list[int], cache: KVCache) -> Chunk:
    return Chunk(torch.tensor(ids), cache)


def test_a_step_is_made_again_when_experts_move(folder: Path, capturing: None) -> None:
    plain = mixq.load(folder, device="cpu", context=CONTEXT, threads=1)
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1, miss="fetch")
    offload = offload_of(model)
    caches = plain.new_kv_cache(), model.new_kv_cache()
    kinds = []
    for token, slots in zip(NEXT, (4, 4, 3, 4, 4, 0), strict=True):
        offload.resize([slots] * 3)
        if slots == 4:
            offload.warm()
        want, got = (m.network.forward([_chunk([token], c)]) for m, c in zip((plain, model), caches, strict=True))
        assert torch.equal(want, got)
        kinds.append(step_of(model.network))
    assert kinds == [True, True, False, True, True, False]


def test_routing_that_is_made_up_is_asked_for_every_token(folder: Path, capturing: None) -> None:
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1)
    routing = parse_routing("uniform", layers=3, experts=4, active=2)
    chosen: list[int] = []

    class Noted:
        def choose(self, layer: int) -> tuple[int, ...]:
            chosen.append(layer)
            return routing.choose(layer)

    model.network.override_routing(Noted())
    cache = model.new_kv_cache()
    for token in NEXT:
        model.network.forward([_chunk([token], cache)])
    assert chosen == [0, 1, 2] * len(NEXT)
    assert not step_of(model.network)


def test_dense_models_are_one_piece(tmp_path: Path, capturing: None) -> None:
    write_tiny_mistral(tmp_path / "dense", layers=2)
    plain = mixq.load(tmp_path / "dense", device="cpu", context=CONTEXT, threads=1)
    model = mixq.load(tmp_path / "dense", device="sim", vram="30MB", context=CONTEXT, threads=1)
    assert torch.equal(plain.forward([5]), model.forward([5]))
    caches = plain.new_kv_cache(), model.new_kv_cache()
    for token in (5, 6, 7):
        want, got = (m.network.forward([_chunk([token], c)]) for m, c in zip((plain, model), caches, strict=True))
        assert torch.equal(want, got)
    assert step_of(model.network)


def test_each_of_several_steps_says_its_own_experts(folder: Path, capturing: None) -> None:
    plain = mixq.load(folder, device="cpu", context=CONTEXT, threads=1)
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1)
    caches = [(plain.new_kv_cache(), model.new_kv_cache()) for _ in range(2)]
    for token in NEXT:
        for shift, pair in enumerate(caches):
            for m, cache in zip((plain, model), pair, strict=True):
                m.network.forward([_chunk([token + shift], cache)])
            assert plain.network.chosen_experts() == model.network.chosen_experts()
    both = [[_chunk([5], pair[i]) for pair in caches] for i in range(2)]
    for m, chunks in zip((plain, model), both, strict=True):
        m.network.forward(chunks)
    assert plain.network.chosen_experts() == model.network.chosen_experts()
    assert len(model.network.chosen_experts()) == 2


def test_a_step_does_not_keep_its_cache_alive(folder: Path, capturing: None) -> None:
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1)
    cache = model.new_kv_cache()
    model.network.forward([_chunk([5], cache)])
    alive = weakref.ref(cache)
    del cache
    gc.collect()
    assert alive() is None
    assert model.network._steps is not None
    assert not model.network._steps._steps


def test_a_full_context_is_said(folder: Path, capturing: None) -> None:
    model = mixq.load(folder, device="sim", vram="8MB", context=4, threads=1)
    cache = model.new_kv_cache()
    for token in NEXT[:4]:
        model.network.forward([_chunk([token], cache)])
    with pytest.raises(mixq.MixqError, match="do not fit"):
        model.network.forward([_chunk([5], cache)])
