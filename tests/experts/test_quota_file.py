"""Quotas in a file: scaled to the slots there are, refused for another model, checked number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixq
from mixq.errors import ModelFileError, StorageError, UsageError
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.quota import Quotas, fits
from tests.experts.conftest import CONTEXT, PROMPT, memory_for

ORDER = tuple(tuple((i + first) % 8 for i in range(8)) for first in range(5))


@given(quotas=st.lists(st.integers(0, 8), min_size=1, max_size=6), total=st.integers(0, 60))
def test_scaled_quotas_use_every_slot_and_keep_their_proportion(quotas: list[int], total: int) -> None:
    layers = len(quotas)
    shares = Quotas(layers, 8, tuple(quotas)).scaled(total)
    assert sum(shares) == min(total, 8 * layers)
    assert all(0 <= share <= 8 for share in shares)
    if sum(quotas) == total:
        assert shares == quotas
    if sum(quotas) and 8 not in shares:
        for share, quota in zip(shares, quotas, strict=True):
            assert abs(share - quota * total / sum(quotas)) < 1


def test_what_full_layers_cannot_take_goes_to_the_others() -> None:
    assert Quotas(3, 8, (8, 2, 0)).scaled(20) == [8, 8, 4]
    assert Quotas(3, 8, (0, 0, 0)).scaled(4) == [2, 1, 1]


def test_several_totals_are_fitted_for_the_price_of_one() -> None:
    curves = [[0, 0, 10], [0, 4, 8], [0, 5, 6]]
    assert fits(curves, [0, 1, 2, 3, 6, 9]) == [fits(curves, [total])[0] for total in (0, 1, 2, 3, 6, 9)]
    assert fits(curves, []) == []


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    quotas = Quotas(5, 8, (1, 2, 3, 4, 5), "run.mqt", ORDER)
    quotas.write(tmp_path / "q.json")
    assert Quotas.read(tmp_path / "q.json") == quotas
    plain = Quotas(5, 8, (1, 2, 3, 4, 5))
    plain.write(tmp_path / "q.json")
    assert Quotas.read(tmp_path / "q.json") == plain
    assert json.loads((tmp_path / "q.json").read_text()) == {
        "format": "mixq-quota", "version": 1, "layers": 5, "experts": 8, "quotas": [1, 2, 3, 4, 5], "from": "",
    }  # fmt: skip


GOOD = {"format": "mixq-quota", "version": 1, "layers": 2, "experts": 4, "quotas": [1, 4], "from": "x"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "must be 'mixq-quota'"),
        ({"version": 2}, "version is 2; it must be 1"),
        ({"layers": 0}, "layers is 0; it must be a whole number from 1 to 1024"),
        ({"layers": True}, "layers is True; it must be a whole number from 1 to 1024"),
        ({"experts": "4"}, "experts is .*; it must be a whole number from 1 to 1024"),
        ({"experts": 10**9}, "experts is .*; it must be a whole number from 1 to 1024"),
        ({"quotas": [1]}, "2 whole numbers"),
        ({"quotas": [1, 5]}, "0 to 4"),
        ({"quotas": [1, -1]}, "0 to 4"),
        ({"quotas": [1, 1.0]}, "0 to 4"),
        ({"quotas": None}, "2 whole numbers"),
        ({"from": 5}, "from is 5; it must be a string"),
        ({"popular": [[0, 1, 2, 3]]}, "popular must be 2 lists"),
        ({"popular": [[0, 1, 2, 3], [0, 1, 2, 2]]}, "popular must be 2 lists"),
        ({"popular": [[0, 1, 2, 3], ["a", "b", "c", "d"]]}, "popular must be 2 lists"),
        ({"quota": [1, 2]}, "Did you mean 'quotas'"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ModelFileError, match=said):
        Quotas.read(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{", b"\xff", b"PK\x03\x04"):
        (tmp_path / "q.json").write_bytes(content)
        with pytest.raises(ModelFileError):
            Quotas.read(tmp_path / "q.json")
    with pytest.raises(ModelFileError, match="does not exist"):
        Quotas.read(tmp_path / "none")
    with pytest.raises(StorageError):
        Quotas(1, 1, (1,)).write(tmp_path / "no" / "q.json")


# In a model


def test_a_model_has_the_slots_that_the_file_says_and_the_same_answers(
    demo: Path, plan: MemoryPlan, tmp_path: Path
) -> None:
    path = tmp_path / "q.json"
    Quotas(5, 8, (0, 1, 2, 3, 4), popular=ORDER).write(path)
    options = {"device": "sim", "context": CONTEXT, "threads": 1}
    model = mixq.load(demo, vram=memory_for(plan, 2), quota=path, **options)
    offload = model.placement.offload
    assert offload is not None
    assert offload.cache.quotas == (0, 1, 2, 3, 4)
    there = [{e for e in range(8) if offload.cache.state(layer, e) is not None} for layer in range(5)]
    assert there == [set(ORDER[layer][:layer]) for layer in range(5)], "the popular ones first"
    even = mixq.load(demo, vram=memory_for(plan, 2), **options)
    assert model.forward(PROMPT).equal(even.forward(PROMPT))
    twice = mixq.load(demo, vram=memory_for(plan, 4), quota=path, **options)
    assert twice.placement.offload is not None
    assert twice.placement.offload.cache.quotas == (0, 2, 4, 6, 8)


def test_quotas_of_another_model_are_refused_by_name(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixtral.json"
    Quotas(32, 8, (3,) * 32).write(path)
    with pytest.raises(
        UsageError, match=r"mixtral.json are for a model of 32 layers with 8 experts each; this one has 5"
    ):
        mixq.load(demo, device="sim", context=CONTEXT, quota=str(path))
    with pytest.raises(ModelFileError, match="does not exist"):
        mixq.load(demo, device="sim", context=CONTEXT, quota=str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="quota is 5"):
        mixq.load(demo, device="sim", quota=5)


def test_on_the_cpu_alone_it_is_said_to_have_no_effect(demo: Path, tmp_path: Path) -> None:
    Quotas(5, 8, (1,) * 5).write(tmp_path / "q.json")
    model = mixq.load(demo, device="cpu", context=CONTEXT, quota=str(tmp_path / "q.json"))
    assert any("quota has no effect" in note for note in model.notes)
