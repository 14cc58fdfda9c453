"""`--table fit`: it loses less of weights that are not normal, no more of those that are, and is the same again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixq.formats.folder import ModelFolder
from mixq.formats.mix import Mix
from mixq.formats.nl4 import DEFAULT_TABLE, is_table
from mixq.formats.scheme import Scheme
from mixq.quantize import table_fit
from mixq.quantize.job import quantize
from mixq.quantize.layout import all_items, plan_shards
from mixq.quantize.scale_search import search
from mixq.quantize.sources.open import open_source
from mixq.quantize.table_fit import fit_table, fit_to_source, sample_source
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

NL4 = Scheme("nl4", 32)


def error_of(table: Sequence[int], samples: list[Tensor], scheme: Scheme) -> float:
    """The relative squared error with a table, the mean over the samples' weights."""
    lost = [(search(w, scheme, table=table).relative_squared_error, w.numel()) for w in samples]
    return sum(error * count for error, count in lost) / sum(count for _, count in lost)


def drawn(kind: str, rows: int = 64, columns: int = 1024, seed: int = 1) -> Tensor:
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    if kind == "normal":
        return normal
    if kind == "laplace":
        return torch.empty(rows, columns).exponential_(generator=generator) * normal.sign()
    if kind == "uniform":
        return torch.rand(rows, columns, generator=generator) - 0.5
    assert kind == "student"  # of 4 degrees of freedom
    return normal / torch.randn(4, rows, columns, generator=generator).square().mean(dim=0).sqrt()


@pytest.mark.parametrize(
    ("kind", "scheme", "at_most"),
    [
        ("normal", "nl4:32", 1.00),
        ("normal", "nl4:16", 1.00),
        ("laplace", "nl4:32", 0.94),
        ("laplace", "nl4:16", 0.95),
        ("student", "nl4:32", 0.88),
        ("uniform", "nl4:64", 0.80),
    ],
)
def test_error_on_weights_that_the_table_was_not_fitted_to(kind: str, scheme: str, at_most: float) -> None:
    fitted = fit_table([drawn(kind)], Scheme.parse(scheme))
    assert is_table(fitted)
    other = [drawn(kind, seed=2)]
    default = error_of(DEFAULT_TABLE, other, Scheme.parse(scheme))
    ratio = error_of(fitted, other, Scheme.parse(scheme)) / default
    print(f"{kind} {scheme}: {default:.5f}, {ratio:.4f} of it with {fitted}")
    assert ratio <= at_most + 0.01


def test_the_fit_is_never_worse_on_its_own_sample() -> None:
    for seed in range(3):
        sample = [drawn("normal", 8, 64, seed)]
        assert error_of(fit_table(sample, NL4), sample, NL4) <= error_of(DEFAULT_TABLE, sample, NL4)


def test_neither_the_units_nor_the_type_of_a_matrix_matter() -> None:
    sample = [drawn("laplace", seed=seed).bfloat16() for seed in (1, 2)]
    fitted = fit_table([w.float() for w in sample], NL4)
    assert fit_table(sample, NL4) == fitted
    assert fit_table([sample[0] * 2**-10, sample[1] * 2**10], NL4) == fitted


def test_threads_do_not_matter() -> None:
    sample = [drawn("laplace", 400, 256)]
    threads = torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.add(fit_table(sample, NL4))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_columns_that_count_decide() -> None:
    """Half of the columns are uniform, half Laplace; the table is for those that count."""
    sample = torch.cat([drawn("uniform", 64, 512), drawn("laplace", 64, 512)], dim=1)
    counts = torch.cat([torch.ones(512), torch.zeros(512)])
    only = error_of(fit_table([sample], NL4, importance=[counts]), [sample[:, :512]], NL4)
    assert only < error_of(fit_table([sample], NL4), [sample[:, :512]], NL4) * 0.97


@pytest.mark.parametrize(
    "sample",
    [
        [],
        [torch.zeros(4, 64)],
        [torch.zeros(4, 64), torch.ones(4, 64)],
        [torch.full((1, 32), 1e-30)],
        [torch.eye(32)],
        [torch.full((2, 32), -3.0)],
    ],
)
def test_weights_that_say_next_to_nothing(sample: list[Tensor]) -> None:
    assert is_table(fit_table(sample, NL4))


def test_other_schemes_have_no_table() -> None:
    with pytest.raises(ValueError, match="has no table"):
        fit_table([drawn("normal")], Scheme("w4", 32))


class Counted:
    """A source that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self.source = open_source(path)
        self.read: list[str] = []

    def tensor(self, name: str) -> Tensor:
        self.read.append(name)
        return self.source.tensor(name)


def test_the_sample_is_bounded_and_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_fit, "SAMPLE_WEIGHTS", 12 * 64 * 128)
    write_tiny_mixtral(tmp_path, layers=8, experts=8)
    source = Counted(tmp_path)
    config = source.source.config
    items = [item for item in all_items(plan_shards(config, Mix.resolve(config))) if item.scheme == NL4]
    sample = list(sample_source(source, items))  # type: ignore[arg-type]
    assert len(source.read) == len(set(source.read)) == 12
    assert {name.split(".")[2] for name in source.read} == {"1", "3", "5", "7"}
    assert {name.split(".")[-2] for name in source.read} == {"w1", "w2", "w3"}
    assert {tuple(w.shape) for w in sample} == {(64, 128), (32, 256)}
    first = source.source.tensor(source.read[0]).float()
    assert torch.equal(sample[0], first[2::4])  # the middles of 64 stretches of 256 rows


def test_a_dense_model_has_a_table_too_and_one_without_nl4_the_default(tmp_path: Path) -> None:
    write_tiny_mistral(tmp_path)
    source = open_source(tmp_path)
    assert is_table(fit_to_source(source, plan_shards(source.config, Mix.resolve(source.config))))
    w4 = plan_shards(source.config, Mix.resolve(source.config, format="w4"))
    assert fit_to_source(source, w4) == DEFAULT_TABLE


def test_a_job_that_fits_its_table(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "out", table="fit")
    source = open_source(tmp_path / "source")
    expected = fit_to_source(source, plan_shards(source.config, Mix.resolve(source.config)))
    quantization = ModelFolder.open(tmp_path / "out").quantization
    assert quantization is not None
    assert quantization.table == expected != DEFAULT_TABLE
