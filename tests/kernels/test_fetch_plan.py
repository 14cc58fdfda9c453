"""How weights are fetched: every plan gives the same bits, and the choice is kept for this machine alone."""

from __future__ import annotations

import json

import pytest
import torch

from mixq.errors import DoesNotFitError
from mixq.kernels import fetch_plan, native_library
from mixq.kernels.fetch_plan import DEFAULT, PLANS, FetchPlan
from mixq.kernels.native_kernels import NativeKernels
from mixq.system import paths
from tests.kernels.random_weights import ISAS, ONE_OF_EACH, generator, random_weight

pytestmark = pytest.mark.skipif(not ISAS, reason="there is no native library")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_every_plan_gives_the_same_bits(isa: str, kind: str) -> None:
    kernels = NativeKernels(2, isa=native_library.ISA_NAMES[isa])
    weight, x = random_weight(kind, 45, 640, seed=1), torch.randn(3, 640, generator=generator(1))
    wanted = [kernels.linear(x[:rows], weight) for rows in (1, 3)]
    for plan in (*PLANS.values(), FetchPlan(1, 4, 1 << 20), FetchPlan(3, 2, 64, 1 << 20)):
        fetch_plan.use(kernels, plan)
        assert all(torch.equal(kernels.linear(x[: len(out)], weight), out) for out in wanted), plan


def test_the_default_of_the_library_is_that_of_the_plans() -> None:
    fetch = native_library.DEFAULT_FETCH
    assert FetchPlan(fetch.hint, fetch.rows, fetch.distance, fetch.near) == DEFAULT


def test_a_plan_is_replaced_for_a_gain_of_three_percent_only() -> None:
    rates = dict.fromkeys(PLANS, 10.0)
    assert fetch_plan.fastest({**rates, "once": 10.2}) is DEFAULT
    assert fetch_plan.fastest({**rates, "once": 10.4}) is PLANS["once"]


def test_measuring_leaves_the_kernels_as_they_were() -> None:
    kernels = NativeKernels(1)
    before = kernels.fetch
    assert fetch_plan.measure(kernels, nbytes=32 << 20) in PLANS.values()
    assert kernels.fetch is before


def test_without_memory_the_default_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nbytes: int) -> torch.Tensor:
        raise DoesNotFitError("no", hint="none")

    monkeypatch.setattr(fetch_plan, "allocate", refuse)
    assert fetch_plan.measure(NativeKernels(1)) is DEFAULT


def test_a_choice_is_kept_until_the_machine_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(kernels: NativeKernels) -> FetchPlan:
        measured.append(kernels.threads)
        return PLANS["once"]

    monkeypatch.setattr(fetch_plan, "measure", measure)
    monkeypatch.setattr(fetch_plan, "physical_cores", lambda: 2)
    assert fetch_plan.kept() is None
    two, three = NativeKernels(2), NativeKernels(3)
    assert fetch_plan.chosen(two) == fetch_plan.chosen(two) == PLANS["once"] == fetch_plan.kept()
    assert measured == [2]
    assert fetch_plan.chosen(two, refresh=True) == PLANS["once"]
    assert measured == [2, 2]
    fetch_plan.chosen(three)
    monkeypatch.setattr(fetch_plan, "cpu_name", lambda: "another")
    assert fetch_plan.kept() is None
    fetch_plan.chosen(three)
    assert measured == [2, 2, 3, 3]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plan": 1}', "plan"])
def test_an_unreadable_file_measures_again(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_plan, "measure", lambda kernels: DEFAULT)
    kernels = NativeKernels(2)
    fetch_plan.chosen(kernels)
    file = paths.cache() / fetch_plan.FILE_NAME
    kept = json.loads(file.read_text())
    for damaged in (content, json.dumps({**kept, "plan": {"hint": 9}}), json.dumps({**kept, "threads": 2})):
        file.write_text(damaged)
        assert fetch_plan.chosen(kernels) is DEFAULT
    assert json.loads(file.read_text()) == kept
