"""How a folder's generation_config.json becomes sampling parameters."""

from __future__ import annotations

from typing import Any

import pytest

from mixq.engine.generation_config import default_sampling
from mixq.engine.sampling import SamplingParams
from mixq.errors import ModelFileError


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
