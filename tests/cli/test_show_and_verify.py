"""`mixq show` and `mixq verify`: what a folder holds, and whether it still does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from mixq.formats.manifest import Manifest
from tests.cli.conftest import RunCli


def test_show_says_shape_schemes_and_source(cli: RunCli, quantized: Path) -> None:
    outcome = cli("show", quantized)
    assert (outcome.code, outcome.err) == (0, "")
    for words in (
        "MixtralForCausalLM, 2 layers, 4 experts, 2 per token",
        "nl4:16",
        "w8:128",
        "made from",
        "tiny, bfloat16",
    ):
        assert words in outcome.out


def test_show_as_json(cli: RunCli, quantized: Path, tiny: Path) -> None:
    document = json.loads(cli("show", quantized, "--json").out)
    assert (document["quantization"], document["experts"], document["max_context"]) == ("mixq", 4, 512)
    assert document["source"]["name"] == "tiny"
    unquantized = json.loads(cli("show", tiny, "--json").out)
    assert unquantized["quantization"] is None
    assert unquantized["source"] is None
    assert unquantized["sizes"]["weights"] == document["sizes"]["weights"]
    assert unquantized["sizes"]["nbytes"] == 2 * unquantized["sizes"]["weights"]


def test_control_characters_in_a_manifest_are_spelled_out(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(quantized, folder)
    manifest = Manifest.read(folder)
    replace(manifest, source={**manifest.source, "name": "\x1b]0;owned\x07"}).write(folder)
    outcome = cli("show", folder)
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert r"\x1b]0;owned" in outcome.out


def test_verify_of_a_whole_folder(cli: RunCli, quantized: Path) -> None:
    outcome = cli("verify", quantized)
    assert outcome.code == 0
    assert "all as written" in outcome.out


def test_verify_finds_a_flipped_bit(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(quantized, folder)
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-7] ^= 4
    shard.write_bytes(content)
    outcome = cli("verify", folder)
    assert outcome.code == 3
    assert f"{shard.name}: was changed" in outcome.out
    assert "has 1 problem" in outcome.err
    document = json.loads(cli("verify", folder, "--json").out)
    assert [problem["file"] for problem in document["problems"]] == [shard.name]


def test_folder_that_cannot_be_shown(cli: RunCli, tmp_path: Path) -> None:
    assert cli("show", tmp_path).code == 3
    assert cli("verify", tmp_path).code == 3
