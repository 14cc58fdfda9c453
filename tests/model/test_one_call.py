"""A few tokens on the CPU take one call of the kernels, with the bits of the layers one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import DoesNotFitError, PromptError
from mixq.experts.executor import CpuExperts
from mixq.experts.ram_tier import RamTier
from mixq.experts.routing import parse_routing
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.network_weights import NetworkWeights, Rows
from mixq.kernels.reference import DECODE_ROWS
from mixq.model.attention import Chunk
from mixq.model.layer import SparseMoeBlock
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

pytestmark = pytest.mark.skipif(native_library.library() is None, reason="no native kernels here")

PROMPT = [5, 9, 2, 17]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("models")
    write_tiny_mixtral(path / "moe-source", seed=5)
    write_tiny_mistral(path / "dense-source", seed=6, sliding_window=3)
    for name in ("moe", "dense"):
        quantize(path / f"{name}-source", path / name)
    return {name: path / name for name in ("moe", "dense")}


@pytest.fixture
def model(folders: dict[str, Path]) -> mixq.Model:
    return mixq.load(folders["moe"], device="cpu", context=64, threads=1)


@pytest.fixture
def tokens_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each single call."""
    counts: list[int] = []
    step = NativeKernels.step

    def counted(self: NativeKernels, network: NetworkWeights, rows: list[Rows], **options: Any) -> Any:
        result = step(self, network, rows, **options)
        if result is not None:
            counts.append(sum(len(row.token_ids) for row in rows))
        return result

    monkeypatch.setattr(NativeKernels, "step", counted)
    return counts


def test_up_to_8_tokens_take_one_call(model: mixq.Model, tokens_of_calls: list[int]) -> None:
    for count in (1, DECODE_ROWS, DECODE_ROWS + 1):
        model.forward(list(range(count)))
    chunks = [Chunk(torch.tensor(ids), model.new_kv_cache()) for ids in ([1, 2], [3])]
    model.network.forward(chunks)
    assert tokens_of_calls == [1, DECODE_ROWS, 3]


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_a_model_gives_the_bits_of_its_layers_one_by_one(
    folders: dict[str, Path], name: str, tokens_of_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[Tensor, list[Any]]:
        model = mixq.load(folders[name], device="cpu", context=64, threads=2)
        cache, logits, chosen = model.new_kv_cache(), [], []
        for ids in ([1, 2, 3, 4, 5], [6], [7, 8]):
            logits.append(model.forward(ids, kv_cache=cache))
            chosen.append(model.network.chosen_experts())
        return torch.cat(logits), chosen

    logits, chosen = run()
    assert tokens_of_calls == [5, 1, 2]
    monkeypatch.setattr(NativeKernels, "step", lambda *_, **__: None)
    separate, wanted = run()
    assert torch.equal(logits, separate)
    assert chosen == wanted
    assert [len(tokens) for tokens in chosen] == ([5, 1, 2] if name == "moe" else [0, 0, 0])


def test_what_needs_the_layers_one_by_one_gets_them(model: mixq.Model, tokens_of_calls: list[int]) -> None:
    with model.network.hook_router(lambda *seen: None), model.network.hook_experts(lambda *seen: None):
        hooked = model.forward(PROMPT)
        chosen = model.network.chosen_experts()
    assert tokens_of_calls == []
    assert torch.equal(model.forward(PROMPT), hooked)
    assert model.network.chosen_experts() == chosen
    assert tokens_of_calls == [len(PROMPT)]
    config = model.config
    routing = parse_routing("uniform", layers=config.num_hidden_layers, experts=config.num_local_experts, active=2)
    model.network.override_routing(routing)
    model.forward(PROMPT)
    assert tokens_of_calls == [len(PROMPT)]


def test_experts_on_an_accelerator_are_not_in_it(folders: dict[str, Path], tokens_of_calls: list[int]) -> None:
    wanted = mixq.load(folders["moe"], device="cpu", context=64).forward(PROMPT)
    tokens_of_calls.clear()
    model = mixq.load(folders["moe"], device="sim", vram="8MB", context=64)
    assert torch.equal(model.forward(PROMPT), wanted)
    assert tokens_of_calls == []


def test_a_layer_with_experts_on_the_disk_has_no_weights_for_it(model: mixq.Model) -> None:
    first, second = model.network.layers
    assert first.weights is not None
    assert isinstance(second.feed_forward, SparseMoeBlock)
    assert isinstance(second.feed_forward.experts, CpuExperts)
    second.feed_forward.experts.tier = cast("RamTier", object())
    assert second.weights is None


def test_a_pass_that_fails_leaves_the_cache_as_it_was(model: mixq.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = model.new_kv_cache()
    model.forward(PROMPT, kv_cache=cache)
    wanted = model.forward([6], kv_cache=cache)
    cache.truncate(len(PROMPT))

    def fail(*_: Any, **__: Any) -> None:
        raise DoesNotFitError("no memory", hint="")

    with monkeypatch.context() as patched:
        patched.setattr(NativeKernels, "step", fail)
        with pytest.raises(DoesNotFitError):
            model.forward([6], kv_cache=cache)
    assert cache.length == len(PROMPT)
    assert torch.equal(model.forward([6], kv_cache=cache), wanted)


def test_a_full_cache_is_an_error(model: mixq.Model) -> None:
    cache = model.new_kv_cache()
    for _ in range(cache.capacity // 4):
        model.forward(PROMPT, kv_cache=cache)
    with pytest.raises(PromptError, match="do not fit"):
        model.network.forward([Chunk(torch.tensor([1]), cache)])
    assert cache.length == cache.capacity
