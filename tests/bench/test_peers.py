"""The bench beside llama.cpp and torch: turns, ratios, and what it says when a side cannot run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import pytest

from tests.bench import peers, peers_sides
from tests.bench.cpu import Cpu
from tests.bench.peers_probe import READ, Probe
from tests.bench.peers_report import Measured, page, section
from tests.bench.peers_sides import check_build, chosen
from tests.bench.quiet import TRIES, Turn, quiet_turn
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


def measured(rates: dict[str, list[float]], measure: str = "decode", size: int = 10**9) -> dict[str, Measured]:
    return {
        name: Measured(
            peers.SIDES[name].title,
            Description("b", size),
            {measure: values},
            {measure: [0.0, 0.0, 0.5][: len(values)]},
        )
        for name, values in rates.items()
    }


def arguments(*given: str) -> argparse.Namespace:
    return peers._parse(["--threads", "2", "--rounds", "3", *given])


class FakeProbe:
    """Limits as if measured: with two threads 60, 50 and 100 GB/s, 2,000 GOPS of int8 and 9,000 with AMX."""

    threads: ClassVar = [1, 2]
    figures: ClassVar = {READ: {1: [20.0, 30.0, 25.0], 2: [60.0, 50.0, 100.0]}}

    def reads(self) -> list[float]:
        return self.figures[READ][2]

    def int8_limits(self) -> dict[str, float]:
        return {"int8": 2000.0, "AMX": 9000.0}


PROBE = cast(Probe, FakeProbe())


def test_ratios_and_shares_are_medians_of_each_round() -> None:
    mode = replace(peers.MODES["all"], measures=("decode",))
    found = measured({"mixq": [30.0, 40.0, 90.0], "llama": [20.0, 10.0, 30.0]})
    how, (limits, figures, ratios, builds) = section(found, PROBE, mode, arguments())
    assert "| read bandwidth, GB/s | 25.0 [20.0-30.0] | 60.0 [50.0-100.0] |" in limits
    assert "| mixq, default mix | 1000 | 40.0 [30.0-90.0] | 40.0 | 80% |" in figures
    assert "| mixq, default mix | llama.cpp, Q4_0 | 3.00 [1.50-4.00] |" in ratios
    assert builds.endswith("| mixq, default mix; llama.cpp, Q4_0 | b |\n")  # of the same build
    assert "In 2 of 6 turns others took more than" in how
    assert "3 rounds" in how


def test_a_prompt_is_compared_with_the_integer_limits() -> None:
    mode = replace(peers.MODES["all"], measures=("prompt-512",))
    _, tables = section(measured({"mixq": [100.0] * 3}, "prompt-512"), PROBE, mode, arguments("--layers", "4"))
    gflops = 2 * 100 * 4 * (2 * 3 * 4096 * 14336 + 2 * 4096 * 4096 + 2 * 1024 * 4096) / 1e9
    assert f"| {gflops:.0f} | {gflops / 2000:.0%} | {gflops / 9000:.0%} |" in tables[1]


def test_ratios_of_prompts_are_those_of_all_layers() -> None:
    """llama.cpp leaves out the experts of one layer: a half of two, a 32nd of 32."""
    mode = replace(peers.MODES["all"], measures=("prompt-512",))
    rates = {"mixq": [1.0, 1.0, 1.0], "llama": [1.0, 1.0, 1.0]}
    how, tables = section(measured(rates, "prompt-512"), PROBE, mode, arguments("--layers", "2"))
    experts, attention = 2 * 3 * 4096 * 14336, 2 * 4096 * 4096 + 2 * 1024 * 4096
    ratio = (2 / 32) / ((experts + 2 * attention) / (31 * experts + 32 * attention))
    assert 1.5 < ratio < 2
    assert f"| {ratio:.2f} [{ratio:.2f}-{ratio:.2f}] |" in tables[2]
    assert "scaled from 2 layers to Mixtral's 32" in how


def test_a_start_is_shown_in_seconds_and_its_ratio_as_speed() -> None:
    rates = {"mixq-nl4-folder": [2.0, 4.0, 2.0], "llama": [1.0, 1.0, 1.0]}
    _, tables = section(measured(rates, "first-token"), PROBE, peers.MODES["first-token"], arguments())
    assert "| 0.50 [0.25-0.50] s |" in tables[1]
    assert "| 2.00 [2.00-4.00] |" in tables[2]


def test_a_folder_is_compared_with_the_same_weights_in_memory() -> None:
    rates = {"mixq-nl4-folder": [9.0, 9.0, 9.0], "mixq-nl4": [10.0, 10.0, 10.0]}
    _, tables = section(measured(rates), PROBE, peers.MODES["folder"], arguments())
    assert "| mixq, nl4 throughout, a folder | mixq, nl4 throughout | 0.90 [0.90-0.90] |" in tables[2]


def test_a_mode_replaces_its_own_part_of_the_file_and_no_other() -> None:
    cpu = Cpu("Some CPU", "Intel", 6, 207, 2, 4, ("avx2",))
    text = ""
    for name, table in (("avx2", "| first |\n"), ("all", "| second |\n"), ("avx2", "| third |\n")):
        title, introduction, parts = page(cpu, peers.MODES[name], f"How {name}.", [table], text)
        text = f"# {title}\n\n{introduction}\n\n" + "\n".join(parts)
    assert text.startswith(
        "# mixq and llama.cpp, Intel, family 6, model 207\n\nSome CPU, family 6, model 207, stepping 2"
    )
    every_core = "**Every core.** How all.\n\n| second |\n"
    assert text.endswith(f"{every_core}\n**AVX2 on both sides.** How avx2.\n\n| third |\n")
    assert "first" not in text


def test_json_has_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = measured({"mixq": [1.0, 3.0, 2.0]}, size=5)
    monkeypatch.setattr(peers, "run", lambda mode, cpu, arguments: (side, PROBE))
    file = tmp_path / "peers.json"
    assert peers.main(["--sides", "mixq", "--measures", "decode", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["sides"]["mixq"]["rates"] == {"decode": [1.0, 3.0, 2.0]}
    assert content["sides"]["mixq"]["description"]["bytes_per_token"] == 5
    assert content["limits"][READ]["2"] == [60.0, 50.0, 100.0]
    assert content["cpu"]["kind"] == Cpu.read().kind


def test_a_build_with_more_than_avx2_is_refused() -> None:
    mode = peers.MODES["avx2"]
    check_build(mode, "llama", "llama-cpp-python, AVX AVX2 FMA")
    check_build(peers.MODES["all"], "llama", "llama-cpp-python, AVX AVX2 AVX512")
    check_build(mode, "mixq-nl4", "mixq, avx512 kernels")
    for feature in ("AVX512", "AVX_VNNI"):
        with pytest.raises(SideError, match="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON"):
            check_build(mode, "llama", f"llama-cpp-python, AVX AVX2 {feature}")


def test_more_sides_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_sides, "available_memory", lambda: 39 * 10**8)
    mode = replace(peers.MODES["all"], sides=("mixq",))
    peers_sides.check(mode, arguments("--layers", "3"))
    with pytest.raises(SideError, match=r"4\.0 GB of memory; 3\.9 GB are free\. Name fewer with --sides"):
        peers_sides.check(mode, arguments("--layers", "4"))


def test_a_folder_as_a_side_takes_the_place_of_weights_in_memory() -> None:
    assert chosen(arguments("--folder-side")).sides[:3] == ("mixq-folder", "mixq-nl4-folder", "llama")
    assert chosen(arguments("--folder-side", "--mode", "folder")).sides == ("mixq-nl4-folder",)
    assert chosen(arguments("--mode", "one-thread", "--sides", "mixq,llama")).threads == 1


def test_sides_are_started_as_the_mode_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(peers_sides, "Worker", lambda *given: started.append(given))
    asked = arguments("--llama-python", "native", "--llama-python-avx2", "older", "--layers", "3")
    with (tmp_path / "log").open("w+b") as log:
        for mode, name in (
            ("avx2", "llama"),
            ("avx2", "mixq-nl4"),
            ("first-token", "llama"),
            ("folder", "mixq-folder"),
        ):
            peers_sides.start(name, peers.MODES[mode], asked, tmp_path, log)
    llama, mixq, mapped, folder = started
    assert (llama[0], mapped[0]) == ("older", "native")
    assert "--mapped" in mapped[2]
    assert "--mapped" not in llama[2]
    assert mixq[4]["MIXQ_CPU_ISA"] == "avx2"
    assert "MIXQ_CPU_ISA" not in folder[4]
    assert folder[2][:6] == ["--mix", "default", "--folder", str(tmp_path / "mixq-folder"), "--layers", "3"]


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
    monkeypatch.setattr("tests.bench.quiet.wait_for_quiet", lambda patience, beside: True)
    monkeypatch.setattr("tests.bench.quiet._cpus", lambda: next(looks))
    monkeypatch.setattr("tests.bench.quiet._own", lambda *processes: 0.0)
    seconds = iter([3.0, 2.0, 2.5])
    turn = quiet_turn(lambda: next(seconds), 0, patience=10)
    assert (turn.figure, turn.others) == (2.0, 0.5)
    assert TRIES == 3
    assert next(seconds, None) is None


def test_a_process_that_belongs_to_the_measurement_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The side and the busy process beside it take both CPUs."""
    looks = iter([(0.0, 0.0), (1.0, 2.0), (1.0, 2.0), (3.0, 4.0)])  # waiting for quiet, then the turn
    spent = {7: iter([0.0, 1.0]), 8: iter([0.0, 1.0, 1.0, 2.0])}
    monkeypatch.setattr("tests.bench.quiet._LOOK", 0)
    monkeypatch.setattr("tests.bench.quiet._cpus", lambda: next(looks))
    monkeypatch.setattr("tests.bench.quiet._seconds", lambda process: next(spent[process]))
    assert quiet_turn(lambda: 1.5, 7, patience=10, beside=[8]) == Turn(1.5, 0.0)
