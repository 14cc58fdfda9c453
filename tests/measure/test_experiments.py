"""Experiments with a model: routing, logits, perplexity, forced experts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import mixq
from mixq.errors import PromptError, UsageError
from mixq.experts.offload import ExpertOffload
from mixq.measure import perplexity
from mixq.measure.experiments import force, logits, route
from mixq.quantize import quantize
from mixq.system import paths
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

TEXT = "What is 25 - (4 * 2) + 3? Quelle est la capitale de l'Italie ? La capitale de l'Italie est Rome."
L, E, A = 5, 8, 2  # of the demo model
IDS = [1, *range(20, 40)]


@pytest.fixture(scope="module")
def demo() -> mixq.Model:
    return mixq.load(exact=True, threads=1)


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


# Routing


def test_route_gives_the_choices_of_transformers(demo: mixq.Model) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(paths.demo_source(), dtype=torch.float32).eval()
    ids = demo.encode(TEXT)
    with torch.inference_mode():
        outputs = peer(torch.tensor([ids]), output_router_logits=True)
    scores = torch.stack([layer.view(-1, E).float() for layer in outputs.router_logits], dim=1)  # [T, L, E]
    weights, wanted = scores.softmax(-1).topk(A)
    got, got_weights = route(demo, TEXT, weights=True)
    assert (got.shape, got.dtype) == ((len(ids), L, A), np.uint8)
    assert (got_weights.shape, got_weights.dtype) == (got.shape, np.float32)
    assert np.array_equal(got, wanted.numpy())
    assert np.allclose(got_weights, (weights / weights.sum(-1, keepdim=True)).numpy(), atol=1e-4)
    assert np.array_equal(route(demo, ids), got)
    assert np.array_equal(route(demo, np.array(ids)), got)


def test_route_is_the_same_in_parts_and_on_an_accelerator(demo: mixq.Model, tiny: Path) -> None:
    long = demo.encode(TEXT) * 30  # several passes
    assert len(long) > 1024
    whole = route(demo, long)
    assert np.array_equal(whole[:40], route(demo, long[:40]))
    assert len({tuple(token.flatten()) for token in whole}) > 40
    cpu = mixq.load(tiny, device="cpu", context=64, threads=1)
    assert np.array_equal(route(on_sim(tiny), IDS), route(cpu, IDS))
    token_by_token = []
    cache = cpu.new_kv_cache()
    for token in IDS:
        cpu.forward([token], kv_cache=cache)
        token_by_token += cpu.network.chosen_experts()
    assert [[tuple(layer) for layer in token] for token in route(cpu, IDS).tolist()] == token_by_token


def test_texts_and_ids_that_cannot_be_run_are_refused(demo: mixq.Model, tiny: Path) -> None:
    for ask in (route, logits):
        for prompt, said in (("", "empty"), ([], "empty"), ([5, -1], "-1"), ([1] * 3000, "3000"), ([0.5], "whole")):
            with pytest.raises(PromptError, match=said):
                ask(demo, prompt)  # type: ignore[arg-type]


def test_dense_models_have_nothing_to_route_or_force(tmp_path: Path) -> None:
    write_tiny_mistral(tmp_path / "dense")
    dense = mixq.load(tmp_path / "dense", device="cpu", threads=1)
    with pytest.raises(UsageError, match="dense"):
        route(dense, [5])
    with pytest.raises(UsageError, match="dense"):
        force(dense, top_k=1)
    assert logits(dense, [5, 6]).shape == (2, 64)


# Logits and perplexity


def test_logits_are_those_of_forward(demo: mixq.Model) -> None:
    rows = logits(demo, TEXT)
    assert (type(rows), rows.dtype) == (np.ndarray, np.float32)
    assert np.array_equal(rows, demo.forward(demo.encode(TEXT)).numpy())


def test_windows_change_perplexity_and_a_stride_without_overlap_does_not(demo: mixq.Model) -> None:
    whole = perplexity.perplexity(demo, TEXT).perplexity
    short = perplexity.perplexity(demo, TEXT, window=16).perplexity
    assert short != whole
    assert perplexity.perplexity(demo, TEXT, window=16, stride=15).perplexity == short


@pytest.mark.parametrize(("window", "stride"), [(16, 5), (16, 15), (9, 1), (300, 100), (20, 8)])
def test_each_token_counts_once_after_as_many_as_a_stride_leaves(demo: mixq.Model, window: int, stride: int) -> None:
    ids = demo.tokenizer.encode(TEXT)
    nll, counted, windows = 0.0, 0, 0
    for end in itertools.count(window - 1, stride):
        part = ids[end - (window - 1) : end]
        logprobs = demo.forward([demo.tokenizer.bos_id, *part[:-1]]).double().log_softmax(-1)
        new = min(end, len(ids)) - counted
        nll -= float(logprobs[torch.arange(len(part)), torch.tensor(part)][-new:].sum())
        counted, windows = counted + new, windows + 1
        if counted == len(ids):
            break
    report = perplexity.perplexity(demo, TEXT, window=window, stride=stride)
    assert (report.tokens, report.windows) == (len(ids), windows)
    assert report.perplexity == pytest.approx(np.exp(nll / len(ids)), rel=1e-4)


def test_rows_held_at_once_do_not_change_strided_figures(demo: mixq.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity.perplexity(demo, TEXT, window=32, stride=7).perplexity
    monkeypatch.setattr(perplexity, "ROWS", 3)
    assert perplexity.perplexity(demo, TEXT, window=32, stride=7).perplexity == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stride", [0, -1, 16])
def test_strides_that_are_not_possible_are_refused(demo: mixq.Model, stride: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 15"):
        perplexity.perplexity(demo, TEXT, window=16, stride=stride)


# Forced experts


FORCED: dict[str, tuple[dict[str, Any], dict[int, tuple[set[int], int]]]] = {
    "top 1": ({"top_k": 1}, dict.fromkeys(range(L), (set(range(E)), 1))),
    "top 5": ({"top_k": 5}, dict.fromkeys(range(L), (set(range(E)), 5))),
    "an expert dropped in a layer": ({"drop": [(2, 3)]}, {2: (set(range(E)) - {3}, 2)}),
    "two dropped everywhere": ({"drop": {3, 0}}, dict.fromkeys(range(L), (set(range(E)) - {3, 0}, 2))),
    "all but one dropped": ({"drop": [(1, e) for e in range(7)]}, {1: ({7}, 1)}),
    "told which": ({"experts": {3: (1, 5), 4: [2]}}, {3: ({1, 5}, 2), 4: ({2}, 1)}),
    "together": (
        {"top_k": 2, "drop": [(4, 6)], "experts": {4: {6, 7}, 0: (0, 1, 2)}},
        {**dict.fromkeys(range(1, 4), (set(range(E)), 2)), 4: ({7}, 1), 0: ({0, 1, 2}, 2)},
    ),
}


@pytest.mark.parametrize("name", FORCED)
def test_forced_experts_are_what_the_definition_gives(demo: mixq.Model, name: str) -> None:
    """Softmax over the scores of those allowed, the best of them, made to sum to one; experts in plain torch."""
    asked, by_layer = FORCED[name]
    plain = logits(demo, TEXT)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(layer: int, x: Tensor, output: Tensor) -> None:
        seen[layer] = x, output

    with force(demo, **asked), demo.network.hook_experts(note):
        forced = logits(demo, TEXT)
        chosen = demo.network.chosen_experts()
    assert not np.allclose(forced, plain, atol=1e-2)
    assert np.array_equal(logits(demo, TEXT), plain)  # and it is over
    for layer, (x, output) in seen.items():
        allowed, count = by_layer.get(layer, (set(range(E)), A))
        expected, expected_ids = by_hand(demo, layer, x, sorted(allowed), count)
        assert torch.allclose(output, expected, atol=1e-4), layer
        assert [token[layer] for token in chosen] == expected_ids


def by_hand(
    demo: mixq.Model, layer: int, x: Tensor, allowed: list[int], count: int
) -> tuple[Tensor, list[tuple[int, ...]]]:
    prefix = f"model.layers.{layer}.block_sparse_moe"

    def tensor(name: str) -> Tensor:
        return demo.folder.tensor(f"{prefix}.{name}.weight").float()

    scores = x @ tensor("gate").T  # [T, E]
    rows, ids = [], []
    for row, score in zip(x, scores, strict=True):
        best = sorted(allowed, key=lambda e: -float(score[e]))[:count]
        weights = score[best].softmax(-1)  # of equals, softmax over these and over all give the same shares
        answers = [
            tensor(f"experts.{e}.w2") @ (silu(tensor(f"experts.{e}.w1") @ row) * (tensor(f"experts.{e}.w3") @ row))
            for e in best
        ]
        rows.append(sum(w * answer for w, answer in zip(weights, answers, strict=True)))
        ids.append(tuple(best))
    return torch.stack(rows), ids


def test_route_and_generation_see_what_is_forced(demo: mixq.Model) -> None:
    with force(demo, top_k=1):
        assert route(demo, TEXT).shape[-1] == 1
        assert (route(demo, TEXT, weights=True)[1] == 1).all()
        told = list(demo.generate(IDS, temperature=0, max_tokens=3, experts=True))
    experts = [event.experts for event in told if isinstance(event, mixq.Token)]
    assert [[len(layer) for layer in token] for token in experts] == [[1] * L] * len(experts)
    with force(demo, experts={2: (4,)}), pytest.raises(UsageError, match="1 or 2 experts per token"):
        route(demo, TEXT)


def test_forcing_ends_with_its_block_whatever_happens(demo: mixq.Model) -> None:
    plain = logits(demo, TEXT)
    with pytest.raises(KeyError), force(demo, top_k=1):
        raise KeyError
    assert np.array_equal(logits(demo, TEXT), plain)
    with force(demo, top_k=1), pytest.raises(UsageError, match="already"), force(demo, drop={3}):
        pass
    assert np.array_equal(logits(demo, TEXT), plain)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "force has no restriction"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number from 1 to 8"),
        ({"top_k": 9}, "from 1 to 8"),
        ({"top_k": True}, "whole number"),
        ({"drop": {8}}, "expert to drop is 8; it must be a whole number from 0 to 7"),
        ({"drop": [(5, 0)]}, "layer is 5; it must be a whole number from 0 to 4"),
        ({"drop": [(0, 1, 2)]}, "not an expert to drop"),
        ({"drop": 3}, "drop must be a list or a set, not 3"),
        ({"drop": range(8)}, "Layer 0 has no expert left"),
        ({"experts": {9: (1,)}}, "layer is 9"),
        ({"experts": {0: (8,)}}, "expert is 8"),
        ({"experts": {0: ()}}, "Layer 0 needs at least one expert"),
        ({"experts": {0: 1}}, "experts of layer 0 must be a list or a set, not 1"),
        ({"experts": [1, 5]}, "experts must map a layer to its experts"),
        ({"experts": {3: (1,)}, "drop": {1}}, "Layer 3 has no expert left"),
    ],
)
def test_forcing_that_makes_no_sense_is_refused_at_once(demo: mixq.Model, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        force(demo, **asked)
