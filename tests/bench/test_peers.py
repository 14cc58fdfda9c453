"""The bench beside llama.cpp and torch: turns, ratios, and what it says when a side cannot run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

from tests.bench import peers
from tests.bench.quiet import TRIES, quiet_turn
from tests.bench.worker import Description, SideError, Worker

SIDE = """
import sys
from tests.bench.worker import Description, answers_on_stdout, serve
with answers_on_stdout():
    print("a library talks")
    serve(Description("a build", 7), lambda n: None, lambda n: sys.exit(f"no prompt of {n} tokens"))
"""


def start(tmp_path: Path, code: str) -> Worker:
    (tmp_path / "side.py").write_text(code)
    path = os.pathsep.join((str(tmp_path), str(peers.ROOT)))
    return Worker(sys.executable, "side", [], (tmp_path / "log").open("w+b"), {"PYTHONPATH": path})


def test_a_side_describes_itself_takes_turns_and_dies_with_its_words(tmp_path: Path) -> None:
    worker = start(tmp_path, SIDE)
    assert worker.description() == Description("a build", 7)
    assert 0 <= worker.seconds("decode", 3) < 5
    assert 0 <= worker.seconds("decode", 1) < 5
    with pytest.raises(SideError, match="no prompt of 64 tokens"):
        worker.seconds("prefill", 64)
    worker.close()
    assert worker.process.returncode == 1


def test_a_side_that_does_not_start_says_why(tmp_path: Path) -> None:
    worker = start(tmp_path, "raise SystemExit('the kernels are missing')")
    with pytest.raises(SideError, match="the kernels are missing"):
        worker.description()
    worker.close()


def test_ratios_are_medians_of_each_round() -> None:
    rates = {"mixq": [30.0, 40.0, 90.0], "llama": [20.0, 10.0, 30.0]}
    measured = {
        name: peers.Measured(
            peers.SIDES[name].title,
            Description("b", 10**9),
            dict.fromkeys(peers.MEASURES, values),
            {measure: [0.0, 0.0, 0.5] for measure in peers.MEASURES},
        )
        for name, values in rates.items()
    }
    how, tables = peers.report(
        measured, argparse.Namespace(threads=2, layers=4, rounds=3, measures=list(peers.MEASURES))
    )
    assert "| mixq, default mix | llama.cpp, Q4_0 throughout | 3.00 | 3.00 | 3.00 |" in tables[1]
    assert "| mixq, default mix | 1000 | 40.0 [30.0-90.0] | 40.0 |" in tables[0]
    assert "In 6 of 18 turns others took more than" in how


def test_json_has_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = peers.Measured("mixq", Description("b", 5))
    measured.rates["decode"], measured.others["decode"] = [1.0, 3.0], [0.0, 0.1]
    monkeypatch.setattr(peers, "run", lambda arguments: {"mixq": measured})
    file = tmp_path / "peers.json"
    assert peers.main(["--sides", "mixq", "--measures", "decode", "--json", str(file)]) == 0
    side = json.loads(file.read_text())["sides"]["mixq"]
    assert side["rates"] == {"decode": [1.0, 3.0]}
    assert side["description"]["bytes_per_token"] == 5


def test_missing_llama_cpp_is_said_with_the_command_that_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert peers.main(["--sides", "llama", "--llama-python", str(python)]) == 2
    assert f"{python} -m pip install gguf llama-cpp-python" in capsys.readouterr().err


def test_an_unknown_side_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--sides", "mixq,ollama"])
    assert "unknown side 'ollama'" in capsys.readouterr().err


def test_a_disturbed_turn_is_taken_again_and_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.5, 0.0, 1.0, 0.0, 1.2])  # busy seconds before and after each turn, of 2 in all
    looks = iter([(busy, 2.0 * (i % 2)) for i, busy in enumerate(clock)])
    monkeypatch.setattr("tests.bench.quiet.wait_for_quiet", lambda patience: True)
    monkeypatch.setattr("tests.bench.quiet._cpus", lambda: next(looks))
    monkeypatch.setattr("tests.bench.quiet._own", lambda process: 0.0)
    seconds = iter([3.0, 2.0, 2.5])
    turn = quiet_turn(lambda: next(seconds), 0, patience=10)
    assert (turn.seconds, turn.others) == (2.0, 0.5)
    assert TRIES == 3
    assert next(seconds, None) is None
