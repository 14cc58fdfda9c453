"""A cache policy of a user's is asked on the simulated accelerator, and looked at before that."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import UsageError
from mixq.experts.executor import LayerExperts
from mixq.experts.offload import ExpertOffload
from mixq.measure.experiments import force, route
from mixq.model.layer import SparseMoeBlock
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral

IDS = [1, *range(20, 40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_tiny_mixtral(path / "source", ffn=128, layers=3, vocab=100, tokenizer=False)
    quantize(path / "source", path / "nl4")
    return path / "nl4"


def on_sim(tiny: Path, **options: Any) -> mixq.Model:
    """Return a model with 2 of 4 experts of each layer in slots."""
    model = mixq.load(tiny, device="sim", vram="8MB", context=64, threads=1, miss="fetch", **options)
    offload_of(model).resize([2] * 3)
    return model


def offload_of(model: mixq.Model) -> ExpertOffload:
    assert model.placement.offload is not None
    return model.placement.offload


class Noted(mixq.Lru):
    """LRU that writes down what it is told."""

    log: list[tuple[str, int]] = []  # noqa: RUF012

    def used(self, expert: int) -> None:
        self.log.append(("used", expert))
        super().used(expert)

    def victim(self, candidates: Collection[int]) -> int:
        self.log.append(("victim", len(candidates)))
        return super().victim(candidates)


class Largest:
    """The highest number goes: nothing of LRU in it."""

    made: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, layer: int, slots: int) -> None:
        self.made.append((layer, slots))

    def used(self, expert: int) -> None: ...

    def loaded(self, expert: int) -> None: ...

    def evicted(self, expert: int) -> None: ...

    def admits(self, expert: int) -> bool:
        return True

    def victim(self, candidates: Collection[int]) -> int:
        return max(candidates)


def decode(model: mixq.Model) -> Tensor:
    cache = model.new_kv_cache()
    return torch.cat([model.forward([token], kv_cache=cache) for token in IDS])


def test_a_policy_of_ones_own_decides(tiny: Path) -> None:
    expected = decode(mixq.load(tiny, device="cpu", context=64, threads=1))
    Noted.log.clear()
    Largest.made.clear()
    hits: dict[Any, list[int]] = {}
    for policy in ("lru", Noted, Largest):
        model = on_sim(tiny, cache_policy=policy)
        offload = offload_of(model)
        offload.lockstep = True
        offload.resize([3] * 3)
        for layer in model.network.layers:
            assert isinstance(layer.feed_forward, SparseMoeBlock)
            experts = layer.feed_forward.experts
            assert isinstance(experts, LayerExperts)
            experts.lookahead = None
        assert torch.equal(decode(model), expected)  # placement never changes the answer
        offload.quiesce()
        hits[policy] = [counted.hits for counted in offload.cache.counters]
        if policy is Noted:
            assert sum(what == "used" for what, _ in Noted.log) >= offload.telemetry.counters.requests
            assert sum(what == "victim" for what, _ in Noted.log) > 0
    assert hits[Noted] == hits["lru"] != hits[Largest]
    assert Largest.made[1:] == [(0, 4), (1, 4), (2, 4)]  # after the one that was looked at


class NoVictim:
    def used(self, expert: int) -> None: ...

    def loaded(self, expert: int) -> None: ...


class WrongVictim(mixq.Lru):
    def victim(self, candidates: Collection[int], why: str) -> int:  # type: ignore[override]
        return 0


class Demanding(mixq.Lru):
    def __init__(self, layer: int, slots: int, more: int) -> None:
        super().__init__()


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (NoVictim, "NoVictim has no evicted, admits, victim"),
        (WrongVictim, "WrongVictim: victim must take one argument, the candidates"),
        (Demanding, r"Demanding must take \(layer, slots\), or no arguments"),
        (lambda: 5, "has no used, loaded, evicted, admits, victim"),
        (mixq.Lru(), "cache_policy is"),
        ("lruu", "Did you mean 'lru'"),
    ],
)
def test_policies_that_are_none_are_refused_on_load(tiny: Path, policy: Any, said: str, device: str) -> None:
    with pytest.raises(UsageError, match=said):
        mixq.load(tiny, device=device, cache_policy=policy)


def test_a_victim_that_is_no_candidate_is_refused(tiny: Path) -> None:
    class Stubborn(mixq.Lru):
        def victim(self, candidates: Collection[int]) -> int:
            return 99

    model = on_sim(tiny, cache_policy=Stubborn)
    with pytest.raises(UsageError, match="Stubborn: victim returned 99; it must be one of"):
        decode(model)


def test_a_policy_without_a_cache_is_said(tiny: Path) -> None:
    model = mixq.load(tiny, device="cpu", cache_policy=Noted)
    assert model.notes == ("cache-policy has no effect: the model runs on the CPU.",)


def test_a_dropped_expert_is_never_asked_for(tiny: Path) -> None:
    model = on_sim(tiny, cache_policy=Noted)
    Noted.log.clear()
    with force(model, drop={1}):
        model.generate(IDS, temperature=0, max_tokens=10, ignore_eos=True, stream=False)
        assert not (route(model, IDS) == 1).any()
    used = {expert for what, expert in Noted.log if what == "used"}
    assert used == {0, 2, 3}
    assert (route(model, IDS) == 1).any()
