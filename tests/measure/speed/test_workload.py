"""What a test asks of the machine, against sums made by hand."""

from __future__ import annotations

import pytest

from mixq.config import ModelConfig
from mixq.errors import UsageError
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.workload import (
    Workload,
    check_positions,
    decode_bytes,
    weight_count,
    workloads,
)
from mixq.models.presets import PRESETS
from mixq.plan.sizes import ModelSizes, prompt_operations
from mixq.quantize.layout import all_items, plan_shards
from mixq.quantize.report import sizes_of_items
from tests.measure.speed.test_synthetic import TINY, TINY_DENSE


def test_names_are_those_of_llama_bench() -> None:
    names = [w.name for w in workloads([512, 128], [128], [0, 4096])]
    assert names == ["pp512", "pp128", "tg128", "pp512 @ d4096", "pp128 @ d4096", "tg128 @ d4096"]


def test_zero_means_none_and_doubles_count_once() -> None:
    assert [w.name for w in workloads([0], [16, 16], [0])] == ["tg16"]
    with pytest.raises(UsageError, match="no test to run"):
        workloads([0], [0], [0])


def test_a_context_that_is_too_short_is_refused() -> None:
    tests = workloads([512], [128], [0, 4096])
    check_positions(tests, 4608, 8192)
    with pytest.raises(UsageError, match="pp512 @ d4096 needs 4608 positions; the context has 4607"):
        check_positions(tests, 4607, 8192)
    with pytest.raises(UsageError, match="the model has at most 2048"):
        check_positions(tests, 8192, 2048)


@pytest.mark.parametrize("mix", ["default", "all-nl4", "w4", "bf16"])
def test_weight_bytes_are_those_that_show_reports(mix: str) -> None:
    weights = SyntheticWeights.make(TINY, mix=mix)
    if weights.mix is not None:
        items = all_items(plan_shards(weights.config, weights.mix))
        assert ModelSizes.of_weights(weights).token == sizes_of_items(weights.config, items).token_bytes
    else:
        D, F, V, layers = 128, 256, 200, 2
        attention, norms, experts = 2 * D * D + 2 * 64 * D, 2 * D, 2 * 3 * D * F
        assert ModelSizes.of_weights(weights).token == 2 * (
            layers * (attention + norms + 8 * D + experts) + D + V * D + D
        )


def test_decode_reads_the_kv_cache_up_to_each_position() -> None:
    weights = SyntheticWeights.make(TINY)
    empty = ModelSizes.of_weights(weights).token
    assert decode_bytes(ModelSizes.of_weights(weights), 10, Workload(0, 1, 0)) == empty + 10
    assert (
        decode_bytes(ModelSizes.of_weights(weights), 10, Workload(0, 4, 100))
        == empty + 10 * (101 + 102 + 103 + 104) / 4
    )


def test_a_sliding_window_bounds_what_is_read() -> None:
    weights = SyntheticWeights.make(TINY_DENSE | {"sliding_window": 8})
    assert (
        decode_bytes(ModelSizes.of_weights(weights), 10, Workload(0, 4, 100))
        == ModelSizes.of_weights(weights).token + 80
    )


def test_operations_of_a_prompt() -> None:
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"] | {"num_hidden_layers": 4})
    experts, attention = 2 * 3 * 4096 * 14336, 2 * 4096 * 4096 + 2 * 1024 * 4096
    layer = experts + attention + 8 * 4096
    scores = 4 * 32 * 128 * sum(range(1, 513))
    expected = 2 * 512 * 4 * layer + 2 * 32000 * 4096 + 4 * scores
    assert prompt_operations(config, 512) == expected


def test_weights_of_mixtral() -> None:
    assert weight_count(ModelConfig.from_dict(PRESETS["mixtral-8x7b"])) == 46_702_792_704
