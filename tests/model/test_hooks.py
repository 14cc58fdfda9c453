"""Hooks see every layer of every pass, may replace what they see, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import UsageError
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.experts.offload import ExpertOffload
from mixq.experts.routing import parse_routing
from mixq.model.attention import Chunk
from mixq.model.decode_step import DecodeStep
from mixq.model.kv_cache import KVCache
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

L, E, A, D = 3, 4, 2, 128
CONTEXT = 64
PROMPT = [1, *range(20, 40)]
NEXT = [30, 60, 90, 12, 7, 7]
Choice = tuple[int, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_tiny_mixtral(path / "source", hidden=D, ffn=128, layers=L, experts=E, vocab=100)
    quantize(path / "source", path / "nl4")
    return path / "nl4"


@pytest.fixture
def model(folder: Path) -> mixq.Model:
    return mixq.load(folder, device="cpu", context=CONTEXT, threads=1)


def on_sim(folder: Path, slots: int, **options: Any) -> mixq.Model:
    model = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1, **options)
    offload_of(model).resize([slots] * L)
    return model


def offload_of(model: mixq.Model) -> ExpertOffload:
    assert model.placement.offload is not None
    return model.placement.offload


def one(token: int, cache: KVCache) -> list[Chunk]:
    return [Chunk(torch.tensor([token]), cache)]


def steps(model: mixq.Model, cache: KVCache | None = None) -> Tensor:
    """Return the logits of a prompt and of tokens one by one."""
    cache = model.new_kv_cache() if cache is None else cache
    rows = [model.network.forward([Chunk(torch.tensor(PROMPT), cache)], all_logits=True)]
    # A captured step of the simulated accelerator answers in the same memory each time.
    return torch.cat(rows + [model.network.forward(one(token, cache)).clone() for token in NEXT])


def test_hooks_see_every_layer_once_a_pass(model: mixq.Model) -> None:
    routed: list[Choice] = []
    answered: list[tuple[int, Tensor, Tensor]] = []
    expected = steps(model)
    with (
        model.network.hook_router(lambda *seen: routed.append(seen)),
        model.network.hook_experts(lambda *seen: answered.append(seen)),
    ):
        assert torch.equal(steps(model), expected)
    passes = [len(PROMPT), *(1 for _ in NEXT)]
    assert [seen[0] for seen in routed] == [seen[0] for seen in answered] == [0, 1, 2] * len(passes)
    for number, (layer, residual, ids, weights) in enumerate(routed):
        T = passes[number // L]
        assert (residual.shape, ids.shape, weights.shape) == ((T, D), (T, A), (T, A))
        assert (residual.dtype, ids.dtype, weights.dtype) == (torch.float32, torch.int64, torch.float32)
        block = model.network.layers[layer]
        normed = model.kernels.rms_norm(residual, block.post_attention_layernorm, block.eps)
        wanted = model.kernels.route(normed, block.feed_forward.gate, A)
        assert torch.equal(weights, wanted[0])
        assert torch.equal(ids, wanted[1])
        assert torch.equal(answered[number][1], normed)
        assert torch.equal(answered[number][2], block.feed_forward.experts(normed, ids, weights, residual))


def test_removed_hooks_leave_nothing_behind(model: mixq.Model) -> None:
    expected = steps(model)
    handles = [
        model.network.hook_router(lambda layer, residual, ids, weights: (ids.flip(-1), weights)),
        model.network.hook_experts(lambda layer, x, output: output * 2),
    ]
    assert not torch.allclose(steps(model), expected)
    for handle in (*handles, handles[0]):  # a second time changes nothing
        handle.remove()
    assert torch.equal(steps(model), expected)


def test_a_with_block_removes_its_hook_when_it_breaks_off(model: mixq.Model) -> None:
    def broken(layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> None:
        raise KeyError(layer)

    cache = model.new_kv_cache()
    with pytest.raises(KeyError), model.network.hook_router(broken):
        steps(model, cache)
    assert cache.length == 0
    assert torch.equal(steps(model, cache), steps(model))


def test_a_choice_that_is_replaced_is_the_one_computed(model: mixq.Model) -> None:
    seen: list[Choice] = []

    def first_alone(layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor] | None:
        return (ids[:, :1], torch.ones(len(ids), 1)) if layer == 1 else None

    answers = {}

    def noted(layer: int, x: Tensor, output: Tensor) -> None:
        answers[layer] = (x.clone(), output.clone())

    with (
        model.network.hook_router(first_alone),
        model.network.hook_router(lambda *what: seen.append(what)),
        model.network.hook_experts(noted),
    ):
        model.forward(PROMPT)
        chosen = model.network.chosen_experts()
    assert [tuple(len(experts) for experts in token) for token in chosen] == [(2, 1, 2)] * len(PROMPT)
    ids, weights = seen[1][2:]  # the next hook sees what this one left
    assert ids.shape == weights.shape == (len(PROMPT), 1)
    assert ids[:, 0].tolist() == [token[1][0] for token in chosen]
    x, output = answers[1]
    block = model.network.layers[1].feed_forward
    alone = torch.cat([model.kernels.experts(x, [block.experts.experts[i]], ids[:, :1] * 0, weights) for i in range(E)])
    assert torch.allclose(output, alone.view(E, -1, D)[ids[:, 0], torch.arange(len(ids))], atol=1e-5)


def test_an_answer_that_is_replaced_is_the_one_added(model: mixq.Model) -> None:
    residuals: list[Tensor] = []
    with (
        model.network.hook_experts(lambda layer, x, output: torch.zeros_like(output)),
        model.network.hook_router(lambda layer, residual, ids, weights: residuals.append(residual)),
    ):
        cache = model.new_kv_cache()
        logits = model.forward([5], kv_cache=cache)
    layers, hidden = model.network.layers, residuals[-1]  # after the last attention, and nothing more is added
    assert len(layers) == len(residuals)
    normed = model.kernels.rms_norm(hidden, model.network.head.norm, model.config.rms_norm_eps)
    assert torch.equal(logits, model.kernels.linear(normed, model.network.head.lm_head))


@pytest.mark.parametrize("slots", [4, 2, 0])
def test_captured_steps_are_not_used_meanwhile(
    folder: Path, model: mixq.Model, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr(SimulatedAccelerator, "captures", True)
    sim = on_sim(folder, slots, miss="cpu")
    run, captured = DecodeStep.run, []
    monkeypatch.setattr(DecodeStep, "run", lambda *args: captured.append(args) or run(*args))
    expected, seen = steps(model), []
    cache = sim.new_kv_cache()
    assert torch.equal(steps(sim, cache), expected)
    assert len(captured) == len(NEXT)
    for hook in (sim.network.hook_router, sim.network.hook_experts):
        seen.clear()
        cache.truncate(0)
        with hook(lambda layer, *_: seen.append(layer)):
            assert torch.equal(steps(sim, cache), expected)
        assert seen == [0, 1, 2] * (1 + len(NEXT))
        assert not captured[len(NEXT) :]
        cache.truncate(0)
        assert torch.equal(steps(sim, cache), expected)  # and are used again
        assert len(captured) == 2 * len(NEXT)
        assert len(seen) == L * (1 + len(NEXT))
        del captured[len(NEXT) :]


def test_predictions_go_on_unless_a_choice_was_replaced(folder: Path) -> None:
    model = on_sim(folder, 2)
    offload = offload_of(model)
    asked: list[int] = []
    note_prediction = offload.telemetry.note_prediction

    def noted(layer: int, ahead: int, experts: Any) -> None:
        asked.append(layer - ahead)
        note_prediction(layer, ahead, experts)

    offload.telemetry.note_prediction = noted  # type: ignore[method-assign]
    cache = model.new_kv_cache()
    with model.network.hook_router(lambda *seen: None):
        model.network.forward(one(5, cache))
    assert asked == [0, 0, 1]
    asked.clear()
    with model.network.hook_router(lambda layer, residual, ids, weights: (ids, weights) if layer == 0 else None):
        model.network.forward(one(6, cache))
    assert asked == [1]
    asked.clear()
    model.network.forward(one(7, cache))
    assert asked == [0, 0, 1]


@pytest.mark.parametrize("slots", [4, 2, 0])
@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_experts_are_computed_wherever_they_lie(
    folder: Path, model: mixq.Model, slots: int, count: int
) -> None:
    def so_many(layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        first = ids[:, :1]
        other = (first + torch.arange(count)) % E  # [T, count]
        return other, torch.full(other.shape, 1 / count)

    sim = on_sim(folder, slots, miss="cpu")
    with model.network.hook_router(so_many), sim.network.hook_router(so_many):
        assert torch.equal(steps(sim), steps(model))
        assert {len(experts) for token in sim.network.chosen_experts() for experts in token} == {count}


def test_made_up_routing_is_what_a_hook_sees(model: mixq.Model) -> None:
    model.network.override_routing(parse_routing("uniform", layers=L, experts=E, active=A))
    seen: list[list[int]] = []
    with model.network.hook_router(lambda layer, residual, ids, weights: seen.append(ids[0].tolist())):
        model.forward([5])
    assert [[list(experts) for experts in token] for token in model.network.chosen_experts()] == [seen]


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_a_dense_model_has_no_routers_but_a_feed_forward_block(tmp_path: Path, device: str) -> None:
    write_tiny_mistral(tmp_path / "dense", layers=2)
    model = mixq.load(tmp_path / "dense", device=device, context=CONTEXT, threads=1)
    with pytest.raises(UsageError, match="dense, so it has no routers"):
        model.network.hook_router(lambda *seen: None)
    expected, seen = model.forward([5, 6]), []
    with model.network.hook_experts(lambda layer, x, output: seen.append((layer, output.shape == x.shape == (2, D)))):
        assert torch.equal(model.forward([5, 6]), expected)
    assert seen == [(0, True), (1, True)]
    with model.network.hook_experts(lambda layer, x, output: -output):
        assert not torch.allclose(model.forward([5, 6]), expected)


BAD_CHOICES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "ids alone": (lambda ids, weights: ids, "must be None or a tuple"),
    "lists": (lambda ids, weights: (ids.tolist(), weights.tolist()), "its ids must be a tensor, not list"),
    "int32": (lambda ids, weights: (ids.int(), weights), "must be torch.int64"),
    "float64": (lambda ids, weights: (ids, weights.double()), "must be torch.float32"),
    "another shape": (lambda ids, weights: (ids, weights[:, :1]), "both must be"),
    "other tokens": (lambda ids, weights: (ids[1:], weights[1:]), r"both must be \[21, A\]"),
    "no expert": (lambda ids, weights: (ids[:, :0], weights[:, :0]), "A from 1 to 4"),
    "an expert too high": (lambda ids, weights: (ids * 0 + torch.tensor([0, 4]), weights), "0 to 3"),
    "a negative one": (lambda ids, weights: (ids * 0 - torch.tensor([0, 1]), weights), "0 to 3"),
    "twice the same": (lambda ids, weights: (ids * 0, weights), "twice for one token"),
}


@pytest.mark.parametrize("name", BAD_CHOICES)
def test_choices_that_make_no_sense_are_refused(model: mixq.Model, name: str) -> None:
    change, said = BAD_CHOICES[name]
    hook = model.network.hook_router(lambda layer, residual, ids, weights: change(ids, weights))
    with hook, pytest.raises(UsageError, match=said):
        model.forward(PROMPT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda output: output[:1], r"returned \[1, 128\]; it must be \[21, 128\]"),
        (lambda output: output.half(), "must be torch.float32"),
        (lambda output: 0.0, "must be a tensor, not float"),
    ],
)
def test_answers_that_make_no_sense_are_refused(model: mixq.Model, change: Callable[[Tensor], Any], said: str) -> None:
    with model.network.hook_experts(lambda layer, x, output: change(output)), pytest.raises(UsageError, match=said):
        model.forward(PROMPT)
