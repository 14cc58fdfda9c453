"""The presets are the published models: parameter counts as their papers and cards give them."""

from __future__ import annotations

import pytest

from mixq.config import ModelConfig
from mixq.formats.architecture import parameters
from mixq.models.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mixtral-8x7b", 46_702_792_704),
        ("mixtral-8x22b", 140_620_634_112),
        ("mistral-7b", 7_248_023_552),
        ("llama-2-70b", 68_976_648_192),
    ],
)
def test_parameter_count(name: str, weights: int) -> None:
    config = ModelConfig.from_dict(PRESETS[name])
    assert sum(p.numel for p in parameters(config)) == weights


def test_experts_are_most_of_mixtral() -> None:
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    by_role: dict[str, int] = {}
    for p in parameters(config):
        by_role[p.role] = by_role.get(p.role, 0) + p.numel
    assert by_role["expert"] == 256 * 3 * 4096 * 14336
    assert by_role["expert"] / sum(by_role.values()) == pytest.approx(0.966, abs=0.001)
