"""The figures of a bench follow from its samples, and a broken-off one has those it made."""

from __future__ import annotations

import csv
import io
import itertools
import json
import statistics
from dataclasses import replace

import pytest

from mixq.engine.model import Model
from mixq.errors import UsageError
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed import table
from mixq.measure.speed.bandwidth import Bandwidth
from mixq.measure.speed.measure import Bench, Row
from mixq.measure.speed.synthetic import synthetic_model
from mixq.measure.speed.workload import Workload, workloads
from mixq.plan.sizes import ModelSizes
from tests.measure.speed.test_synthetic import TINY

TESTS = workloads([12], [6], [0, 20])
needs_library = pytest.mark.skipif(native_library.library() is None, reason="the native library was not built")


@pytest.fixture(scope="module")
def model() -> Model:
    return synthetic_model(TINY, threads=1, context=64)


class FixedBandwidth:
    best = 1e9
    nbytes = 0

    def probe(self) -> float:
        return self.best


@pytest.fixture
def bench(model: Model) -> Bench:
    return Bench(model, TESTS, repeats=3, bandwidth=FixedBandwidth())


def test_each_test_runs_as_often_as_asked_at_its_depth(bench: Bench) -> None:
    lengths = []
    for _ in bench.samples():
        lengths.append(bench._kv_cache.length)
    assert lengths == [12] * 3 + [6] * 3 + [32] * 3 + [26] * 3
    assert [row.workload.name for row in bench.rows()] == ["pp12", "tg6", "pp12 @ d20", "tg6 @ d20"]


def test_figures_agree_with_one_another(bench: Bench) -> None:
    samples = list(bench.samples())
    for row in bench.rows():
        own = [sample for sample in samples if sample.workload == row.workload]
        assert row.samples == tuple(row.workload.tokens / sample.seconds for sample in own)
        assert row.tokens_per_second == pytest.approx(sum(row.samples) / 3)
        assert (row.gflops is None) == bool(row.workload.gen)
        assert (row.bytes_per_token is None) == (row.share_of_limit is None) == bool(row.workload.prompt)
        if row.bytes_per_token is not None:
            assert row.bytes_per_second == pytest.approx(row.bytes_per_token * row.tokens_per_second)
            assert row.share_of_limit == pytest.approx(row.bytes_per_token * statistics.median(row.samples) / 1e9)


def test_a_deeper_decode_reads_more(bench: Bench, model: Model) -> None:
    list(bench.samples())
    by_name = {row.workload.name: row for row in bench.rows()}
    near, far = by_name["tg6"].bytes_per_token, by_name["tg6 @ d20"].bytes_per_token
    assert near is not None
    assert far is not None
    kv = 2 * 2 * 2 * 32 * 2  # layers, keys and values, kv heads, head size, bfloat16
    assert far - near == pytest.approx(20 * kv)
    assert near == pytest.approx(ModelSizes.of_weights(model.folder).token + 3.5 * kv)


@needs_library
def test_time_outside_the_kernels_is_part_of_the_whole(bench: Bench) -> None:
    for sample in bench.samples():
        if sample.workload.gen:
            assert 0 < sample.busy_seconds < sample.seconds
    for row in bench.rows():
        if row.workload.gen:
            assert row.overhead_us is not None
            assert 0 < row.overhead_us < 1e6 / min(row.samples) / 2  # two layers


def test_broken_off_it_has_what_was_measured(bench: Bench) -> None:
    assert bench.rows() == []
    list(itertools.islice(bench.samples(), 4))
    rows = bench.rows()
    assert [(row.workload.name, len(row.samples)) for row in rows] == [("pp12", 3), ("tg6", 1)]
    assert rows[1].deviation == 0.0


def test_without_native_kernels_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    bench = Bench(synthetic_model(TINY, threads=1, context=64), workloads([0], [2], [0]), repeats=1)
    list(bench.samples())
    (row,) = bench.rows()
    assert (row.share_of_limit, row.overhead_us, bench.bandwidth) == (None, None, None)
    assert row.bytes_per_second is not None


def test_tests_that_do_not_fit_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="needs 128 positions; the context has 64"):
        Bench(model, workloads([128], [], [0]), bandwidth=FixedBandwidth())


@needs_library
def test_bandwidth_is_the_best_of_all_probes(model: Model) -> None:
    assert isinstance(model.kernels, NativeKernels)
    bandwidth = Bandwidth(model.kernels, largest=8 << 20)
    rates = [bandwidth.probe() for _ in range(3)]
    assert bandwidth.nbytes == 8 << 20
    assert bandwidth.best == max(rates) > 1e8


def test_markdown_has_the_columns_of_llama_bench(bench: Bench) -> None:
    list(bench.samples())
    head, rule, *lines = table.markdown(bench).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[:7] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert set(rule) <= set("|-: ")
    assert len(lines) == len(TESTS)
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(columns)
        mean, deviation = cells[6].split(" ± ")
        assert float(mean) > 0
        assert float(deviation) >= 0


def test_csv_json_lines_and_document_say_the_same(bench: Bench) -> None:
    list(bench.samples())
    lines = [json.loads(line) for line in table.json_lines(bench).splitlines()]
    cells = list(csv.DictReader(io.StringIO(table.comma_separated(bench))))
    document = json.loads(json.dumps(table.document(bench), allow_nan=False))
    for line, row, test in zip(lines, cells, document["tests"], strict=True):
        assert float(row["avg_ts"]) == line["avg_ts"] == test["avg_ts"]
        assert (int(row["n_prompt"]), int(row["n_gen"])) == (line["n_prompt"], line["n_gen"])
        assert len(row["samples_ts"].split()) == len(line["samples_ts"]) == 3
        assert line["model_n_params"] == document["weights"]
    assert table.comma_separated(Bench(bench.model, TESTS, bandwidth=FixedBandwidth())) == ""


def test_what_does_not_apply_is_empty() -> None:
    row = Row(Workload(512, 0, 0), 12.345, 0.052, (12.345,), gflops=80.0)
    assert table.figures(row) == ("12.35 ± 0.05", "", "", "", "80.0", "")
    decode = replace(row, gflops=None, bytes_per_token=993e6, bytes_per_second=12.3e9, share_of_limit=0.612)
    assert table.figures(decode) == ("12.35 ± 0.05", "0.993", "12.3", "61.2 %", "", "")
