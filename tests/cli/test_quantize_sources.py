"""`mixq quantize` on every kind of source and with every further flag, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import Manifest
from mixq.system import paths
from tests.cli.conftest import RunCli
from tests.fake_hub import COMMIT, FakeHub, folder_contents
from tests.mistral_checkpoints import write_release

NAME = "some-one/Tiny-Mixtral"


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    pytest.importorskip("huggingface_hub")
    with FakeHub({NAME: folder_contents(tiny)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_repository_by_its_name(cli: RunCli, hub: FakeHub, quantized: Path) -> None:
    outcome = cli("quantize", NAME, "--revision", "main")
    assert outcome.code == 0, outcome.err
    assert "are read from the hub" in outcome.err
    made = paths.store() / "Tiny-Mixtral-nl4"
    assert shards_of(made) == shards_of(quantized)
    shown = cli("show", "Tiny-Mixtral-nl4")
    assert COMMIT in shown.out
    assert NAME in shown.out


def test_dry_run_of_a_repository_reads_headers_only(cli: RunCli, hub: FakeHub, tmp_path: Path) -> None:
    document = json.loads(cli("quantize", NAME, tmp_path / "out", "--dry-run", "--json").out)
    assert document["source"] == NAME
    assert document["memory_needed"] > 0
    assert hub.sent < 1_000_000 < document["sizes"]["source_bytes"]
    assert not (tmp_path / "out").exists()


def test_names_that_are_nothing(cli: RunCli, hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", "some-one/else", tmp_path / "out")
    assert (outcome.code, "has no repository" in outcome.err) == (3, True)
    outcome = cli("quantize", "no-such-thing", tmp_path / "out")
    assert (outcome.code, "is not a folder, GGUF file, model in the store, or name of a" in outcome.err) == (3, True)
    outcome = cli("quantize", tiny, tmp_path / "out", "--revision", "main")
    assert (outcome.code, "--revision is for repositories" in outcome.err) == (2, True)
    outcome = cli("quantize", tiny / "model.safetensors", tmp_path / "out")
    assert (outcome.code, "is one file of a checkpoint" in outcome.err) == (2, True)
    outcome = cli("quantize", NAME, tmp_path / "out", "--revision", "v7")
    assert (outcome.code, "has no revision 'v7'" in outcome.err) == (3, True)


def test_no_network(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    outcome = cli("quantize", NAME, tmp_path / "out")
    assert (outcome.code, "cannot be reached" in outcome.err) == (5, True)


def test_pickled_weights(cli: RunCli, tiny: Path, quantized: Path, tmp_path: Path) -> None:
    source = tmp_path / "pickled"
    raw = json.loads((tiny / "config.json").read_text())
    write_release(source, load_file(tiny / "model.safetensors"), raw, pickled=True)
    outcome = cli("quantize", source, tmp_path / "out")
    assert (outcome.code, "--allow-pickle" in outcome.err) == (2, True)
    assert cli("quantize", source, tmp_path / "out", "--allow-pickle").code == 0
    assert shards_of(tmp_path / "out") == shards_of(quantized)


def test_calibrated_on_the_text_that_comes_with_mixq(cli: RunCli, tiny: Path, quantized: Path, tmp_path: Path) -> None:
    flags = ("--calibrate", "default", "--calibrate-tokens", "600")
    outcome = cli("quantize", tiny, tmp_path / "out", *flags)
    assert outcome.code == 0, outcome.err
    assert shards_of(tmp_path / "out") != shards_of(quantized)
    assert "600 tokens of default" in cli("show", tmp_path / "out").out
    assert "The folder is already complete" in cli("quantize", tiny, tmp_path / "out", *flags).err
    (tmp_path / "short.txt").write_text("Too short.")
    outcome = cli("quantize", tiny, tmp_path / "other", "--calibrate", tmp_path / "short.txt")
    assert (outcome.code, "tokens that calibrating needs" in outcome.err) == (2, True)


def test_kept_groups(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    assert cli("quantize", tiny, tmp_path / "w4", "--format", "w4").code == 0
    outcome = cli("quantize", tmp_path / "w4", tmp_path / "out", "--keep")
    assert outcome.code == 0, outcome.err
    assert "quantized already (compressed-tensors)" in outcome.err
    first, kept = (load_file(next(iter(sorted((tmp_path / n).glob("*.safetensors"))))) for n in ("w4", "out"))
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight_packed"
    assert torch.equal(first[name], kept[name])
    outcome = cli("quantize", tiny, tmp_path / "none", "--keep")
    assert (outcome.code, "--keep has nothing to copy" in outcome.err) == (2, True)


def test_a_table_that_is_none(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("quantize", tiny, tmp_path / "out", "--table", "fitt")
    assert (outcome.code, "Did you mean 'fit'?" in outcome.err) == (2, True)


def test_a_fitted_table(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny, tmp_path / "cubed")  # weights with heavier tails than normal ones
    tensors = load_file(source / "model.safetensors")
    cubed = {name: tensor.float().pow(3).to(tensor.dtype) for name, tensor in tensors.items()}
    save_file(cubed, source / "model.safetensors")
    assert cli("quantize", source, tmp_path / "out", "--table", "fit").code == 0
    assert cli("quantize", source, tmp_path / "usual").code == 0
    tables, errors = [], []
    for name in ("out", "usual"):
        tables.append(json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]["table"])
        errors.append(sum(Manifest.read(tmp_path / name).errors.values()))
    assert tables[0] != tables[1]
    assert errors[0] < errors[1]
    assert "fitted to the weights" in cli("show", tmp_path / "out").out
    assert cli("verify", tmp_path / "out").code == 0


def test_a_recipe(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[schemes]\n'model\\.layers\\.1\\..*\\.w2' = \"nl4:16\"\n'lm_head' = \"bf16\"\n")
    assert cli("quantize", tiny, tmp_path / "out", "--recipe", recipe).code == 0
    folder = ModelFolder.open(tmp_path / "out")
    assert folder.quantization is not None
    experts = "block_sparse_moe.experts.0.w2"
    found = [str(folder.quantization.scheme_for(f"model.layers.{layer}.{experts}")) for layer in (0, 1)]
    assert found == ["nl4:32", "nl4:16"]
    assert folder.quantization.scheme_for("lm_head") is None
    recipe.write_text("[schemes]\n'model\\.layers\\.99\\..*' = \"nl4:16\"\n")
    outcome = cli("quantize", tiny, tmp_path / "other", "--recipe", recipe)
    assert outcome.code == 2
    assert "layers" in outcome.err
    outcome = cli("quantize", tiny, tmp_path / "other", "--recipe", tmp_path / "nowhere.toml")
    assert (outcome.code, "cannot be read" in outcome.err) == (2, True)


def test_a_lora_adapter(cli: RunCli, tiny: Path, quantized: Path, tmp_path: Path) -> None:
    adapter, module = tmp_path / "adapter", "model.layers.0.self_attn.q_proj"
    adapter.mkdir()
    generator = torch.Generator().manual_seed(4)
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.randn(4, 128, generator=generator),
        f"base_model.model.{module}.lora_B.weight": torch.randn(128, 4, generator=generator),
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    outcome = cli("quantize", tiny, tmp_path / "out", "--lora", adapter)
    assert outcome.code == 0, outcome.err
    made, usual = (ModelFolder.open(path).linear(module) for path in (tmp_path / "out", quantized))
    assert not torch.equal(made.dequantize(), usual.dequantize())  # type: ignore[union-attr]
    outcome = cli("quantize", tiny, tmp_path / "other", "--lora", tmp_path / "nowhere")
    assert outcome.code == 3


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_a_report(suffix: str, cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = tmp_path / f"report.{suffix}"
    assert cli("quantize", tiny, tmp_path / "out", "--report", report).code == 0
    assert report.stat().st_size > 10_000
    outcome = cli("quantize", tiny, tmp_path / "other", "--report", tmp_path / "report.pdf")
    assert outcome.code == 2
    assert not (tmp_path / "other").exists()
