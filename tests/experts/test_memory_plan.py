"""How an accelerator's memory is shared out, and what is said when it is too small."""

from __future__ import annotations

import pytest

from mixq.config import ModelConfig, parse_size
from mixq.errors import DoesNotFitError
from mixq.experts.memory_plan import MemoryPlan, plan_memory, workspace_bytes
from mixq.experts.quota import Quotas
from mixq.models.presets import PRESETS

CONFIG = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
GB = 10**9
PARTS = {"kv_cache": 1 * GB, "trunk": 1 * GB, "workspace": GB // 2, "slot_bytes": 94_000_000}


def plan(budget: int, **other: object) -> MemoryPlan:
    return plan_memory(CONFIG, budget, **{**PARTS, **other})


def test_what_is_left_after_kv_cache_trunk_and_workspace_is_slots() -> None:
    found = plan(8 * GB)
    assert found.used <= 8 * GB < found.used + found.slot_bytes
    assert found.staging == 2 * found.slot_bytes
    assert max(found.quotas) - min(found.quotas) <= 1
    assert found.slots == sum(found.quotas) == (8 * GB - 2 * GB - GB // 2 - found.staging) // 94_000_000


def test_there_are_never_more_slots_than_experts() -> None:
    assert plan(100 * GB).quotas == (8,) * 32


def test_a_longer_context_costs_slots() -> None:
    assert plan(8 * GB, kv_cache=3 * GB).slots < plan(8 * GB).slots


def test_too_little_for_the_trunk_names_the_smallest_setting_that_does() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan(2 * GB)
    assert caught.value.exit_code == 4
    hint = str(caught.value.hint)
    smallest = parse_size(hint.split("--vram ")[1].split(",")[0])
    assert plan(smallest).slots == 0
    with pytest.raises(DoesNotFitError):
        plan(smallest - 200_000_000)


def test_a_dense_model_has_no_slots() -> None:
    config = ModelConfig.from_dict(PRESETS["mistral-7b"])
    found = plan_memory(config, 8 * GB, kv_cache=GB, trunk=4 * GB, workspace=GB, slot_bytes=0)
    assert found.slots == found.staging == 0


def test_quotas_decide_which_layers_get_the_slots() -> None:
    found = plan(8 * GB, quotas=Quotas(32, 8, (1,) * 16 + (4,) * 16))
    assert all(low < high for low, high in zip(found.quotas[:16], found.quotas[16:], strict=True))


def test_a_pass_of_one_row_needs_less_to_work_in() -> None:
    assert workspace_bytes(CONFIG, 1) < workspace_bytes(CONFIG, 512)


def test_what_the_driver_takes_is_part_of_the_promise() -> None:
    found = plan(8 * GB, driver=GB)
    assert found.used <= 8 * GB
    assert found.slots < plan(8 * GB).slots
    with pytest.raises(DoesNotFitError, match=r"2\.7 GB"):  # slots for experts on their way among what is worked in
        plan(2 * GB, kv_cache=0, driver=GB, workspace=GB // 2)
