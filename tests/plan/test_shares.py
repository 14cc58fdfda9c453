"""Who gets how much: sums, budgets, and what the quantizer and the engine say of the same model."""

from __future__ import annotations

from dataclasses import replace

import pytest

import mixq
from mixq.config import ModelConfig, RuntimeOptions
from mixq.errors import DoesNotFitError
from mixq.models.presets import PRESETS
from mixq.plan.shares import DISK, GPU, RAM, share_out
from mixq.plan.sizes import ModelSizes

CONFIG = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
MIXTRAL = ModelSizes.of_format("mixtral-8x7b", "nl4", CONFIG)
OPTIONS = RuntimeOptions()
GB = 10**9


def test_mixtral_has_the_sizes_of_the_design() -> None:
    assert MIXTRAL.total == pytest.approx(25.3 * GB, rel=0.01)
    assert MIXTRAL.token == pytest.approx(7.0 * GB, rel=0.02)
    assert MIXTRAL.kv_position("bf16") == 128 << 10


def test_sizes_of_a_folder_are_those_of_its_weights() -> None:
    model = mixq.load()
    sizes = ModelSizes.of_weights(model.folder, "bf16")
    assert sizes.total == model.folder.nbytes
    alone = ModelSizes.of_format("demo", "bf16", model.config)
    assert (alone.total, alone.token, alone.expert) == (sizes.total, sizes.token, sizes.expert)


@pytest.mark.parametrize("vram", [6 * GB, 8 * GB, 12 * GB, 24 * GB, 80 * GB])
def test_gpu_memory_is_used_and_never_exceeded(vram: int) -> None:
    shares = share_out(MIXTRAL, OPTIONS, "cuda", 64 * GB, vram)
    assert shares.memory is not None
    assert shares.total(GPU) <= vram
    everything = shares.memory.slots == 256
    assert everything or shares.total(GPU) > vram - MIXTRAL.expert
    assert shares.total(DISK) == MIXTRAL.total


@pytest.mark.parametrize("ram", [8 * GB, 16 * GB, 24 * GB, 64 * GB])
def test_ram_is_used_and_never_exceeded(ram: int) -> None:
    shares = share_out(MIXTRAL, replace(OPTIONS, ram=ram), "cpu", 64 * GB)
    assert shares.total(RAM) <= ram
    assert shares.experts_in_ram == 256 or shares.total(RAM) > ram - MIXTRAL.expert
    assert ("disk" in " ".join(shares.notes)) == (shares.experts_in_ram < 256)


@pytest.mark.parametrize(("share", "said"), [(0.89, False), (0.91, True), (0.94, True), (0.96, False)])
def test_too_little_memory_for_a_copy_in_huge_pages_is_said(share: float, said: bool) -> None:
    needed = share_out(MIXTRAL, OPTIONS, "cpu", None).total(RAM)
    shares = share_out(MIXTRAL, OPTIONS, "cpu", int(needed / share))
    assert (shares.experts_in_ram == 256) == (share < 0.95)
    assert any("to copy the weights into huge pages" in note for note in shares.notes) == said
    assert not share_out(MIXTRAL, OPTIONS, "cuda", int(needed / 0.91), 24 * GB).notes


def test_all_fits_where_the_system_does_not_say() -> None:
    assert share_out(MIXTRAL, OPTIONS, "cpu", None).experts_in_ram == 256


def test_more_promised_than_free_is_said() -> None:
    shares = share_out(MIXTRAL, replace(OPTIONS, ram=64 * GB, vram=24 * GB), "cuda", 32 * GB, 10 * GB)
    assert "The budget is 64.0 GB of RAM; only 32.0 GB are free." in shares.notes
    assert "The budget is 24.0 GB of GPU memory; only 10.0 GB are free." in shares.notes
    assert shares.total(GPU) <= 10 * GB
    assert shares.total(RAM) <= 32 * GB


def test_too_little_is_refused_with_the_least_that_would_do() -> None:
    with pytest.raises(DoesNotFitError, match=r"needs at least 3\.3 GB of RAM; 2\.0 GB are available"):
        share_out(MIXTRAL, replace(OPTIONS, ram=2 * GB), "cpu", 64 * GB)
    with pytest.raises(DoesNotFitError, match=r"the budget is 2\.0 GB"):
        share_out(MIXTRAL, replace(OPTIONS, vram=2 * GB), "cuda", 64 * GB, 8 * GB)
    config = ModelConfig.from_dict(PRESETS["mistral-7b"])
    dense = ModelSizes.of_format("mistral-7b", "bf16", config)
    with pytest.raises(DoesNotFitError, match="mistral-7b in bf16 needs at least"):
        share_out(dense, OPTIONS, "cpu", 8 * GB)


def test_context_sequences_and_kv_count() -> None:
    def ram(**options: object) -> int:
        return share_out(MIXTRAL, replace(OPTIONS, **options), "cpu", None).total(RAM)  # type: ignore[arg-type]

    assert ram(context=32768) - ram() == (32768 - 8192) * (128 << 10)
    assert ram(sequences=4) - ram() == 3 * 8192 * (128 << 10)
    assert ram(kv="int8") < ram()


def test_a_loaded_model_has_what_was_planned_beside_what_it_takes() -> None:
    model = mixq.load(device="sim", vram="32MB", context=512)
    stats = model.stats()
    assert stats["vram_planned_bytes"] <= 32_000_000
    assert stats["vram_peak_bytes"] <= stats["vram_planned_bytes"]
    assert model.placement.gap(stats["ram_planned_bytes"]) is None
    much = 2 * (stats["ram_planned_bytes"] + stats["vram_planned_bytes"])
    said = model.placement.gap(much)
    assert said is not None
    assert "were planned" in said
    model.close()


def test_a_budget_of_ram_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="needs at least"):
        mixq.load(device="cpu", ram="300MB")
