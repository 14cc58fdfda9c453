"""mixq bench with a simulated GPU: routing made up, figures of experts in every format, what is wrong is said."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import RunCli

SHORT = ("-p", "9", "-n", "6", "-r", "2", "--device", "sim", "--vram", "5MB", "--context", "32", "--threads", "1")


def test_experts_are_counted_for_each_test(cli: RunCli, quantized: Path) -> None:
    outcome = cli("bench", quantized, *SHORT, "--miss", "cpu", "--routing", "sticky:0.39", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["backend"].startswith("sim 5.0 MB + CPU")
    prompt, decode = document["tests"]
    experts = decode["experts"]
    assert experts["requests"] == 6 * 2 * 2 * 2  # tokens, layers, active, runs
    assert experts["requests"] == experts["hits"] + experts["on_cpu"]
    assert experts["recall"] == {}, "routing that is made up is not foreseen"
    assert prompt["experts"]["requests"] == 0
    assert prompt["experts"]["prefill_on_cpu"] + prompt["experts"]["prefill_resident"] > 0


def test_the_table_and_the_csv_say_it_too(cli: RunCli, quantized: Path) -> None:
    table = cli("bench", quantized, *SHORT)
    assert "% hits" in table.out
    rows = list(csv.DictReader(io.StringIO(cli("bench", quantized, *SHORT, "--format", "csv").out)))
    assert json.loads(rows[1]["experts"])["requests"] > 0
    assert "% hits" not in cli("bench", quantized, "-p", "9", "-n", "0", "-r", "1").out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--routing", "mixtrall"), "mixtral"),
        (("--routing", "sticky:7"), "from 0 to 1"),
        (("--routing", "trace nowhere"), "does not exist"),
        (("--sim-bandwidth", "fast"), "not a size"),
        (("--miss", "never"), "auto"),
        (("--cache-policy", "lrru"), "lru"),
    ],
)
def test_what_is_not_known_is_refused(cli: RunCli, quantized: Path, flags: tuple[str, str], said: str) -> None:
    outcome = cli("bench", quantized, *SHORT, *flags)
    assert outcome.code in (2, 3)
    assert said in outcome.err
