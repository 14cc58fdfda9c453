"""Sampling: each filter against its definition, the same seed the same tokens, bad values named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixq.engine.sampling import Sampler, SamplingParams, default_sampling, top_logprobs
from mixq.errors import ModelFileError, UsageError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, 1.5])


def sampler(prompt: list[int] | None = None, **params: Any) -> Sampler:
    return Sampler(SamplingParams.from_kwargs(**params), prompt or [], 6)


def kept(probabilities: Tensor) -> list[int]:
    assert probabilities.sum().item() == pytest.approx(1.0)
    return torch.nonzero(probabilities).flatten().tolist()


def test_temperature_zero_is_greedy() -> None:
    assert [sampler(temperature=0).choose(LOGITS) for _ in range(3)] == [0, 0, 0]


def test_top_k_keeps_the_k_most_likely() -> None:
    assert kept(sampler(top_k=3).probabilities(LOGITS)) == [0, 1, 5]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    probabilities = LOGITS.softmax(-1)
    two = float(probabilities[0] + probabilities[5])
    assert kept(sampler(top_p=two - 0.01).probabilities(LOGITS)) == [0, 5]
    assert kept(sampler(top_p=two + 0.01).probabilities(LOGITS)) == [0, 1, 5]
    assert kept(sampler(top_p=0.01).probabilities(LOGITS)) == [0]


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 20.0])
def test_top_p_of_a_large_vocabulary(spread: float) -> None:
    """However flat: the set of tokens is that of a full sort."""
    print("seed 3")
    logits = spread * torch.randn(32000, generator=torch.Generator().manual_seed(3))
    ordered, order = logits.softmax(-1).sort(descending=True)
    for p in (1e-6, 0.1, 0.5, 0.9, 0.95, 0.999):
        size = 1 + int((ordered.cumsum(-1) < p).sum())
        ours = kept(Sampler(SamplingParams(top_p=p), [], 32000).probabilities(logits))
        assert abs(len(ours) - size) <= 2 + size // 1000  # sums in float32
        if spread:
            assert set(ours) <= set(order[: len(ours)].tolist())


def test_min_p_is_relative_to_the_most_likely() -> None:
    ratio = float(LOGITS.softmax(-1)[5] / LOGITS.softmax(-1)[0])
    assert kept(sampler(min_p=ratio - 0.01).probabilities(LOGITS)) == [0, 5]
    assert kept(sampler(min_p=ratio + 0.01).probabilities(LOGITS)) == [0]


def test_repetition_penalty_lowers_tokens_seen_in_prompt_and_answer() -> None:
    s = sampler(prompt=[0], temperature=0, repetition_penalty=10.0)
    assert [s.choose(LOGITS) for _ in range(3)] == [5, 1, 0]
    negative = torch.tensor([-0.1, -0.5, -3.0, -3.0, -3.0, -3.0])
    assert sampler(prompt=[0], temperature=0, repetition_penalty=10.0).choose(negative) == 1


def test_presence_and_frequency_penalties_look_at_the_answer_alone() -> None:
    """OpenAI's: logit - frequency * count - presence * (count > 0)."""
    once = sampler(prompt=[0], temperature=0, presence_penalty=0.6)
    assert [once.choose(LOGITS) for _ in range(4)] == [0, 5, 0, 0]
    often = sampler(prompt=[0], temperature=0, frequency_penalty=0.3)
    assert [often.choose(LOGITS) for _ in range(7)] == [0, 0, 5, 0, 5, 0, 1]
    liked = sampler(temperature=0, presence_penalty=-2.0)
    assert [liked.choose(LOGITS + torch.tensor([0, 0, 0, 0, 0, 2.0])) for _ in range(2)] == [5, 5]


def test_a_bias_is_added() -> None:
    assert sampler(temperature=0, logit_bias={4: 5.0}).choose(LOGITS) == 4
    assert sampler(temperature=0, logit_bias={0: -100}).choose(LOGITS) == 5


def test_what_a_grammar_does_not_allow_is_never_drawn() -> None:
    allowed = torch.tensor([False, True, False, True, True, False])
    drawn = sampler(seed=1, temperature=5.0, top_k=2)
    assert {drawn.choose(LOGITS, allowed) for _ in range(50)} == {1, 3}
    assert sampler(temperature=0, logit_bias={0: 100}).choose(LOGITS, allowed) == 1


def test_the_draw_follows_the_distribution() -> None:
    s = sampler(seed=1, temperature=1.0)
    counts = torch.bincount(torch.tensor([s.choose(LOGITS) for _ in range(4000)]), minlength=6)
    assert torch.allclose(counts / 4000, LOGITS.softmax(-1), atol=0.03)


def test_same_seed_same_tokens() -> None:
    def draw(seed: int) -> list[int]:
        s = sampler(seed=seed, temperature=1.5)
        return [s.choose(LOGITS) for _ in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("params", [{"temperature": 1e-40}, {"temperature": 1e-4}, {"top_p": 1e-50}])
def test_extreme_but_allowed_parameters_draw_the_likeliest(params: dict[str, Any]) -> None:
    assert sampler(seed=1, **params).choose(LOGITS * 30) == 0


def test_logits_that_are_not_finite_are_not_sampled() -> None:
    with pytest.raises(ModelFileError, match="not finite"):
        sampler().choose(torch.tensor([1.0, float("nan")]))


def test_top_logprobs_are_best_first() -> None:
    assert [i for i, _ in top_logprobs(LOGITS.log_softmax(-1), 3)] == [0, 5, 1]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 101}, "logprobs"),
        ({"stop": ("",)}, "stop"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {-1: 0}}, "logit_bias"),
        ({"logit_bias": {"1": 0}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"temprature": 1}, "'temperature'"),
    ],
)
def test_a_parameter_out_of_bounds_is_refused_by_name(params: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams.from_kwargs(**params)
    assert named in error.value.message


# What generation_config.json asks for


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        ({}, {"temperature": 0.7, "top_p": 0.95}),
        ({"bos_token_id": 1, "eos_token_id": 2}, {"temperature": 0.7, "top_p": 0.95}),
        ({"temperature": 0.1}, {"temperature": 0.7, "top_p": 0.95}),
        ({"do_sample": False, "temperature": 0.1}, {"temperature": 0.0}),
        (
            {"do_sample": True},
            {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        ),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": None},
            {"temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0},
        ),
    ],
)
def test_what_a_model_wishes(generation_config: dict[str, Any], expected: dict[str, float]) -> None:
    assert default_sampling(generation_config) == expected
    SamplingParams.from_kwargs(**default_sampling(generation_config))


@pytest.mark.parametrize(
    "generation_config",
    [{"do_sample": "yes"}, {"do_sample": True, "top_k": 2.5}, {"do_sample": True, "top_p": "0.9"}],
)
def test_wish_of_the_wrong_kind(generation_config: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"generation_config.json: \w+ is"):
        default_sampling(generation_config)
