"""A token's logits in decode have the same bits alone, in a batch, and after however the others were chunked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mixq
from mixq.kernels.reference import DECODE_ROWS
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral

PROMPTS = ([5, 9, 2, 17], [3, 3, 3], [40, 41, 42, 43, 44], [7])


@pytest.fixture(scope="module", params=["bf16", "nl4", "w4", "w8", "nf4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> mixq.Model:
    source = tmp_path_factory.mktemp("source")
    write_tiny_mixtral(source, seed=3)
    if request.param == "bf16":
        return mixq.load(source)
    target = tmp_path_factory.mktemp("target") / request.param
    quantize(source, target, format=request.param)
    return mixq.load(target)


def prefilled(model: mixq.Model, prompt: list[int]) -> KVCache:
    """A cache filled token by token."""
    cache = model.new_kv_cache()
    for token in prompt:
        model.forward([token], kv_cache=cache)
    return cache


def decode_alone(model: mixq.Model, prompt: list[int], tokens: list[int]) -> Tensor:
    cache = prefilled(model, prompt)
    return torch.cat([model.forward([t], kv_cache=cache) for t in tokens])


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_bits_do_not_depend_on_the_batch(model: mixq.Model, kv: str) -> None:
    model = mixq.load(model.folder.path, kv=kv)
    alone = [decode_alone(model, prompt, [11, 12, 13]) for prompt in PROMPTS]
    caches = [prefilled(model, prompt) for prompt in PROMPTS]
    for step, token in enumerate([11, 12, 13]):
        together = model.network.forward([Chunk(torch.tensor([token]), cache) for cache in caches])  # [S, V]
        for i in range(len(PROMPTS)):
            assert torch.equal(together[i], alone[i][step]), (i, step)


def test_bits_do_not_depend_on_how_a_few_tokens_are_chunked(model: mixq.Model) -> None:
    tokens = list(range(20, 20 + DECODE_ROWS))
    one_by_one = decode_alone(model, PROMPTS[0], tokens)
    assert torch.equal(model.forward(tokens, kv_cache=prefilled(model, PROMPTS[0])), one_by_one)
    cache = prefilled(model, PROMPTS[0])
    in_two = [model.forward(part, kv_cache=cache) for part in (tokens[:3], tokens[3:])]
    assert torch.equal(torch.cat(in_two), one_by_one)


def test_sequences_of_different_lengths_share_a_pass(model: mixq.Model) -> None:
    alone = [decode_alone(model, PROMPTS[0], [21, 22, 23]), decode_alone(model, PROMPTS[1], [31, 32])]
    chunks = [
        Chunk(torch.tensor([21, 22, 23]), prefilled(model, PROMPTS[0])),
        Chunk(torch.tensor([31, 32]), prefilled(model, PROMPTS[1])),
    ]
    assert torch.equal(model.network.forward(chunks, all_logits=True), torch.cat(alone))


def test_prefill_stays_near_exact(model: mixq.Model) -> None:
    ids = torch.randint(0, model.config.vocab_size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    exact = mixq.load(model.folder.path, exact=True).forward(ids)
    error = (model.forward(ids) - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.median() < 0.1  # of the tokens: a random network's router has near-ties


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_a_step_in_one_call_has_the_bits_of_separate_calls(
    model: mixq.Model, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both for one sequence and for several; nf4 has only separate calls."""

    def run() -> tuple[Tensor, Tensor]:
        loaded = mixq.load(model.folder.path, kv=kv)
        caches = [prefilled(loaded, prompt) for prompt in PROMPTS[:2]]
        chunks = [Chunk(torch.tensor(ids), cache) for ids, cache in zip(([21, 22], [31]), caches, strict=True)]
        return loaded.network.forward(chunks, all_logits=True), decode_alone(loaded, PROMPTS[2], [11, 12])

    together = run()
    monkeypatch.setattr(type(model.kernels), "step", lambda *_, **__: None)
    for ours, separate in zip(together, run(), strict=True):
        assert torch.equal(ours, separate)
