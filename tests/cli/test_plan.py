"""`mixq plan`: presets, files, formats, the command to run, and what makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixq.measure.machine import probe
from mixq.plan.presets import COMPUTERS
from tests.cli.conftest import RunCli


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer is a laptop."""
    monkeypatch.setattr(probe, "probe", lambda *, refresh=False: COMPUTERS["laptop-8gb"])
    monkeypatch.setattr(probe, "cached", lambda: COMPUTERS["laptop-8gb"])


def document(cli: RunCli, *arguments: str) -> dict[str, Any]:
    outcome = cli("plan", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


@pytest.mark.parametrize("hardware", COMPUTERS)
@pytest.mark.parametrize("model", ["mixtral-8x7b", "mixtral-8x22b", "mistral-7b"])
def test_every_preset_on_every_computer(cli: RunCli, model: str, hardware: str) -> None:
    found = document(cli, model, "--hardware", hardware)
    assert found["model"] == model
    assert found["decode"]["low"] < found["decode"]["tokens_per_second"] < found["decode"]["high"]
    assert found["vram_bytes"] <= (found["vram_promised_bytes"] or 0)
    assert found["ram_bytes"] <= COMPUTERS[hardware].ram
    assert found["formats"][0]["format"] == "nl4"


def test_a_model_that_is_too_large_is_refused(cli: RunCli) -> None:
    outcome = cli("plan", "llama-2-70b", "--hardware", "cpu-laptop")
    assert outcome.code == 4
    assert "llama-2-70b in nl4 needs at least 40.7 GB of RAM; 26.6 GB are available." in outcome.err
    assert document(cli, "llama-2-70b", "--hardware", "rtx-4090")["device"] == "cpu"


def test_one_screen(cli: RunCli) -> None:
    outcome = cli("plan", "mixtral-8x7b", "--hardware", "laptop-8gb")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) <= 32
    for words in (
        "mixtral-8x7b in nl4: 25.3 GB, of which a token reads 7.0 GB",
        "KV cache",
        "of 256 experts",
        "limited by experts on the CPU",
        "mixq pull mistralai/Mixtral-8x7B-Instruct-v0.1 && mixq chat mixtral-8x7b-instruct-v0.1",
    ):
        assert words in outcome.out


def test_the_command_has_what_was_asked_for(cli: RunCli) -> None:
    flags = ["--context", "32768", "--vram", "6GB", "--kv", "int8", "--format", "w4"]
    assert document(cli, "mixtral-8x7b", *flags)["command"] == (
        "mixq pull mistralai/Mixtral-8x7B-Instruct-v0.1 --format w4 && mixq chat mixtral-8x7b-instruct-v0.1-w4 "
        "--context 32768 --kv int8 --vram 6000000000"
    )


def test_a_folder_is_planned_as_it_is(cli: RunCli, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "models" / "demo"
    assert cli("quantize", str(source), str(tmp_path / "demo")).code == 0
    found = document(cli, str(tmp_path / "demo"))
    assert found["format"] == "nl4"
    assert found["formats"] == []
    assert found["command"] == f"mixq chat {tmp_path / 'demo'}"
    assert cli("plan", str(tmp_path / "demo"), "--format", "w4").code == 2
    assert document(cli, str(source))["formats"][0]["format"] == "bf16"


def test_figures_that_other_programs_disturbed_are_marked(
    cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loud = replace(COMPUTERS["laptop-8gb"], load=0.34)
    monkeypatch.setattr(probe, "probe", lambda *, refresh=False: loud)
    words = "measured while other programs used 34% of the processor"
    assert words in cli("plan").err
    found = document(cli)
    assert found["computer_load"] == 0.34
    assert words in found["notes"][-1]
    loud.write(tmp_path / "loud.json")
    assert words in cli("plan", "--hardware", str(tmp_path / "loud.json")).err
    monkeypatch.setattr(probe, "probe", lambda *, refresh=False: replace(loud, load=0.2))
    assert words[:20] not in cli("plan").err


def test_little_disk_is_said(cli: RunCli) -> None:
    assert document(cli, "mixtral-8x7b", "--disk", "20GB")["notes"] == [
        "The folder takes 25.3 GB of disk; 20.0 GB are free."
    ]
    assert document(cli, "mixtral-8x7b", "--disk", "30GB")["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mixtral-8x7"], 2, "Did you mean 'mixtral-8x7b'"),
        (["no-such-model"], 3, "no-such-model"),
        (["--hardware", "rtx-409"], 2, "Did you mean 'rtx-4090'"),
        (["--hardware", "rtx-4090", "--device", "sim"], 2, "simulates a GPU on this computer"),
        (["--hardware", "rtx-4090", "--refresh"], 2, "--refresh measures this computer"),
        (["--hardware", "cpu-laptop", "--device", "cuda"], 2, "has no GPU"),
        (["--format", "nl5"], 2, "Did you mean 'nl4'"),
        (["--vram", "1GB"], 4, "Use --vram"),
        (["--ram", "1GB", "--device", "cpu"], 4, "needs at least"),
        (["--ram", "much"], 2, "is not a size"),
        (["--disk", "much"], 2, "is not a size"),
        (["--context", "0"], 2, "context is 0"),
    ],
)
def test_what_makes_no_sense(cli: RunCli, arguments: list[str], code: int, words: str) -> None:
    outcome = cli("plan", *arguments)
    assert outcome.code == code, outcome.err
    assert words in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"format": "mixq-hardware", "version": 2}', "version is 2; it must be 1"),
        ('{"format": "mixq-hardware", "version": 1}', "name is missing; it must be a string"),
        (None, "such a file has at most"),
        ({"ram": 0}, "ram is 0; it must be a whole number above 0"),
        ({"ram": True}, "ram is True"),
        ({"ram": float("nan")}, "is not JSON: NaN"),
        ({"ram": 1e9}, "ram is 1000000000.0; it must be a whole number"),
        ({"disk_bandwidth": -1}, "disk_bandwidth is -1"),
        ({"disk_bandwidth": float("inf")}, "is not JSON: Infinity"),
        ({"name": ""}, "name is ''; it must be a string"),
        ({"versions": {"mixq": 1}}, "versions.mixq is 1; it must be a string"),
        ({"rams": 1}, "rams is an unknown key. Did you mean 'ram'?"),
        ({"cpu": 3}, "cpu is 3; it must be an object"),
        ({"cpu.flops": "fast"}, "flops is 'fast'"),
        ({"cpu.flopz": 1.0}, "cpu.flopz is an unknown key. Did you mean 'flops'?"),
        ({"gpu.memory": None}, "memory is None"),
        ({"gpu.bandwidth": ...}, "gpu.bandwidth is missing; it must be a number"),
        ({"cpu": ...}, "cpu is missing; it must be an object"),
        ({"name": ...}, "name is missing; it must be a string"),
    ],
)
def test_hardware_files_that_make_no_sense(
    cli: RunCli, tmp_path: Path, content: str | dict[str, object] | None, words: str
) -> None:
    path = tmp_path / "hardware.json"
    if content is None:
        path.write_bytes(b" " * ((1 << 20) + 1))
    elif isinstance(content, str):
        path.write_text(content)
    else:
        good = COMPUTERS["laptop-8gb"].as_dict()
        for name, value in content.items():
            place, _, key = name.rpartition(".")
            target = good[place] if place else good
            if value is ...:
                del target[key]
            else:
                target[key] = value
        path.write_text(json.dumps(good))
    outcome = cli("plan", "--hardware", str(path))
    assert outcome.code == 3, outcome.err
    assert words in " ".join(outcome.err.split())


def test_an_unknown_disk_matters_only_where_it_is_needed(cli: RunCli, tmp_path: Path) -> None:
    facts = COMPUTERS["laptop-8gb"].as_dict() | {"disk_bandwidth": None, "name": "evil\x1b[31m"}
    path = tmp_path / "hardware.json"
    path.write_text(json.dumps(facts))
    found = document(cli, "mixtral-8x7b", "--hardware", str(path))
    assert found["experts_in_ram"] == 256
    w8 = next(row for row in found["formats"] if row["format"] == "w8")
    assert not w8["fits"]
    assert "the disk bandwidth of" in w8["why_not"]
    outcome = cli("plan", "mixtral-8x7b", "--format", "w8", "--hardware", str(path))
    assert outcome.code == 2
    assert "\x1b" not in outcome.err


def test_commands_can_be_typed(cli: RunCli, tiny: Path, quantized: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my model"
    spaced.symlink_to(quantized)
    assert document(cli, str(spaced))["command"] == f"mixq chat '{spaced}'"
    found = document(cli, str(tiny), "--format", "nl4")
    assert found["command"] == f"mixq quantize {tiny} {tiny}-nl4 && mixq chat {tiny}-nl4"
    assert document(cli, str(quantized), "--disk", "1MB")["notes"] == []


def test_a_file_that_cannot_be_read(cli: RunCli, tmp_path: Path) -> None:
    assert cli("plan", "--hardware", str(tmp_path)).code == 2
