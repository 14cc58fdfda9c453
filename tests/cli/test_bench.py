"""`mixq bench`: formats, a run that is interrupted, and what is refused before anything is made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.measure.speed import bandwidth, measure, synthetic
from mixq.models.presets import PRESETS
from tests.cli.conftest import RunCli
from tests.measure.speed.test_synthetic import TINY

SHORT = ("-p", "8", "-n", "4", "-r", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny preset, and a buffer that is quick to read."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(bandwidth.Bandwidth.__init__, "__kwdefaults__", {"largest": 8 << 20})


def test_table_of_a_folder(cli: RunCli, quantized: Path) -> None:
    outcome = cli("bench", quantized, *SHORT, "-d", "0,16")
    assert outcome.code == 0, outcome.err
    for words in (
        quantized.name,
        "pp8 ",
        "tg4 ",
        "pp8 @ d16",
        "tg4 @ d16",
        "of limit",
        "read bandwidth",
        "weights         mapped from the disk, read as they are used",
        "peak memory",
    ):
        assert words in outcome.out
    assert "8 of 8 runs" in outcome.err


def test_synthetic_as_json(cli: RunCli) -> None:
    outcome = cli("bench", "--synthetic", "tiny", "--layers", "1", "--mix", "all-nl4", *SHORT, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert (document["model"], document["layers"], document["threads"]) == ("synthetic-tiny", 1, 1)
    assert document["context"] == 8
    assert [test["test"] for test in document["tests"]] == ["pp8", "tg4"]
    assert document["load_seconds"] > 0
    assert document["peak_memory_bytes"] > 2**20


def test_what_other_programs_disturbed_is_marked(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure.Work, "of_others", lambda self, earlier: 0.34)
    base = ("bench", "--synthetic", "tiny", *SHORT)
    words = "tg4 was measured while other programs used 34% of the processor"
    assert words in cli(*base).out
    outcome = cli(*base, "--json", "--save", tmp_path / "saved.jsonl")
    assert words in outcome.err
    assert [test["load"] for test in json.loads(outcome.out)["tests"]] == [0.34, 0.34]
    assert [json.loads(line)["load"] for line in (tmp_path / "saved.jsonl").read_text().splitlines()] == [0.34, 0.34]
    outcome = cli(*base, "--format", "csv")
    assert words in outcome.err
    assert [row["load"] for row in csv.DictReader(io.StringIO(outcome.out))] == ["0.34", "0.34"]
    monkeypatch.setattr(measure.Work, "of_others", lambda self, earlier: 0.1)
    outcome = cli(*base)
    assert "other programs" not in outcome.out + outcome.err


def test_the_seed_is_zero_unless_given(cli: RunCli) -> None:
    base = ("bench", "--synthetic", "tiny", *SHORT, "--json")
    assert json.loads(cli(*base).out)["seed"] == 0
    assert json.loads(cli(*base, "--seed", "7").out)["seed"] == 7


def test_formats_for_programs(cli: RunCli) -> None:
    base = ("bench", "--synthetic", "tiny", *SHORT)
    head = cli(*base, "--format", "markdown").out.splitlines()[0]
    assert [cell.strip() for cell in head.split("|")][1:8] == [
        "model", "size", "params", "backend", "threads", "test", "t/s",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(cli(*base, "--format", "csv").out)))
    assert [row["test"] for row in rows] == ["pp8", "tg4"]
    lines = [json.loads(line) for line in cli(*base, "--format", "jsonl").out.splitlines()]
    assert [line["n_gen"] for line in lines] == [0, 4]


def test_a_made_up_folder_is_written_and_runs(cli: RunCli, tmp_path: Path) -> None:
    made = tmp_path / "made"
    outcome = cli("bench", "--synthetic", "tiny", "--layers", "1", "--mix", "w4", "--write", made, "--json")
    assert outcome.code == 0, outcome.err
    written = sum(path.stat().st_size for path in made.glob("*.safetensors"))
    assert json.loads(outcome.out) == {"path": str(made), "bytes": written}
    outcome = cli("bench", made, *SHORT, "--json")
    assert json.loads(outcome.out)["layers"] == 1
    outcome = cli("bench", "--synthetic", "tiny", "--write", made)
    assert (outcome.code, "exists already" in outcome.err) == (2, True)


def test_the_demo_model_is_the_default(cli: RunCli) -> None:
    outcome = cli("bench", "-p", "0", "-n", "2", "-r", "1")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("the demo model\n")


def test_ctrl_c_prints_what_was_measured(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.Bench.samples

    def interrupted(self: measure.Bench) -> Iterator[measure.Sample]:
        for count, sample in enumerate(whole(self), 1):
            yield sample
            if count == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(measure.Bench, "samples", interrupted)
    outcome = cli("bench", "--synthetic", "tiny", *SHORT, "--json")
    assert outcome.code == 130
    assert [len(test["samples_ts"]) for test in json.loads(outcome.out)["tests"]] == [2, 1]
    assert "interrupted" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthetic", "mixtral-8x7"], "Did you mean 'mixtral-8x7b'"),
        (["some-folder", "--synthetic", "tiny"], "both given"),
        (["--layers", "4"], "--synthetic"),
        (["--mix", "all-nl4"], "--synthetic"),
        (["--write", "made"], "--synthetic"),
        (["--synthetic", "tiny", "--write", "made", "-p", "8"], "nothing is measured"),
        (["--synthetic", "tiny", *SHORT, "--mix", "al-nl4"], "Did you mean 'all-nl4'"),
        (["--synthetic", "tiny", *SHORT, "--layers", "99"], "from 1 to 2"),
        (["--synthetic", "tiny", "-p", "512"], "the model has at most 256"),
        (["--synthetic", "tiny", "-p", "8", "-n", "0", "--context", "4"], "the context has 4"),
        (["--format", "markdwon"], "Did you mean 'markdown'"),
        (["-p", "0", "-n", "0"], "no test to run"),
        (["-p", "many"], "--prompt is 'many'"),
        (["-n", "-5"], "--gen is '-5'"),
        (["-r", "0"], "--repeats is 0"),
        (["--synthetic", "tiny", "-p", "8", "-n", "0", "--threads", "0"], "threads is 0"),
    ],
)
def test_usage_errors(cli: RunCli, arguments: list[str], words: str) -> None:
    outcome = cli("bench", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


def test_a_model_of_the_settings_gives_way_to_synthetic(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQ_MODEL", "/no/such/folder")
    assert cli("bench", "--synthetic", "tiny", *SHORT).code == 0


def test_too_large_for_the_memory(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "available_memory", lambda: 4 * 10**9)
    outcome = cli("bench", "--synthetic", "mixtral-8x7b", "--json")
    assert outcome.code == 4
    error = json.loads(outcome.out)["error"]
    assert "needs 25." in error["message"]
    assert error["hint"] == "4 layers fit: --layers 4."
