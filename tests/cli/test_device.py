"""--device sim and --vram on the command line: the same answer, a promise kept, and clear words when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import RunCli

ASK = ("-p", "Hello", "--temperature", "0", "--max-tokens", "8", "--context", "64")


def document(cli: RunCli, quantized: Path, *flags: str) -> dict[str, Any]:
    outcome = cli("run", quantized, *ASK, "--json", *flags)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert isinstance(found, dict)
    return found


def smallest(cli: RunCli, quantized: Path) -> str:
    outcome = cli("run", quantized, *ASK, "--device", "sim", "--vram", "100KB")
    assert outcome.code == 4
    return outcome.err.split("--vram ")[1].split(",")[0]


@pytest.mark.parametrize("miss", ["auto", "cpu", "fetch"])
def test_the_same_answer_with_memory_kept_below_the_promise(cli: RunCli, quantized: Path, miss: str) -> None:
    plain = document(cli, quantized)
    huge = {"weights_mapped_huge_bytes", "weights_copied_huge_bytes"}
    assert plain["placement"].keys() == {"device", "ram_planned_bytes"} | huge
    assert "experts" not in plain["stats"]
    found = document(cli, quantized, "--device", "sim", "--vram", smallest(cli, quantized), "--miss", miss)
    assert found["text"] == plain["text"]
    assert found["token_ids"] == plain["token_ids"]
    placement = found["placement"]
    assert placement["device"] == "sim"
    assert 0 < placement["vram_taken_bytes"] <= placement["vram_peak_bytes"] <= placement["vram_promised_bytes"]
    experts = found["stats"]["experts"]
    assert experts["requests"] == experts["hits"] + experts["waits"] + experts["fetches"] + experts["on_cpu"] > 0


def test_the_line_under_a_reply_says_where_experts_were(cli: RunCli, quantized: Path) -> None:
    assert "100% hits" in cli("run", quantized, *ASK, "--device", "sim", "--vram", "1GB").err
    assert "GPU memory" not in cli("run", quantized, *ASK).err


def test_a_gpu_that_is_not_there_is_said(cli: RunCli, quantized: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    outcome = cli("run", quantized, *ASK, "--device", "cuda")
    assert outcome.code == 2
    assert "No GPU" in outcome.err
    assert "--device cpu" in outcome.err


def test_flags_of_a_gpu_have_no_effect_on_the_cpu_and_that_is_said(cli: RunCli, quantized: Path) -> None:
    outcome = cli("run", quantized, *ASK, "--vram", "8GB", "--miss", "fetch", "--device", "cpu")
    assert outcome.code == 0
    assert "vram has no effect" in outcome.err
    assert "miss has no effect" in outcome.err
