"""Sources that cannot be quantized: each refused before anything is written, with the cause by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixq.errors import ModelFileError, UsageError
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize.job import Job, quantize
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mixtral


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_tiny_mixtral(tmp_path / "source", shards=3)
    return tmp_path / "source"


def refused(source: Path, tmp_path: Path, match: str) -> None:
    with pytest.raises(ModelFileError, match=match) as error:
        quantize(source, tmp_path / "out")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_missing_shard(source: Path, tmp_path: Path) -> None:
    (source / "model-00002-of-00003.safetensors").unlink()
    refused(source, tmp_path, r"1 of 3 shards are missing: model-00002-of-00003\.safetensors")


def test_a_truncated_shard(source: Path, tmp_path: Path) -> None:
    path = source / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(source, tmp_path, r"model-00003-of-00003\.safetensors is truncated")


def change(source: Path, name: str, new: object) -> None:
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            assert callable(new)
            tensors[name] = new(tensors[name])
            save_file(tensors, path)


def test_a_wrong_shape(source: Path, tmp_path: Path) -> None:
    change(source, "model.layers.1.self_attn.q_proj.weight", lambda tensor: tensor[:, :64].contiguous())
    refused(source, tmp_path, r"q_proj\.weight' has shape \[128, 64\]; config\.json asks for \[128, 128\]")


def test_a_wrong_dtype(source: Path, tmp_path: Path) -> None:
    change(source, "model.norm.weight", lambda tensor: tensor.to(torch.int32))
    refused(source, tmp_path, r"'model\.norm\.weight' is int32; it must be bfloat16, float16, float32")


def test_an_unknown_architecture(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    refused(source, tmp_path, "unknown architecture 'GPT2LMHeadModel'")


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, "is not a folder")


def test_a_folder_of_mixq_as_a_source(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "first")
    refused(tmp_path / "first", tmp_path, "is quantized already")


@pytest.mark.parametrize("format", ["w4", "w8"])
def test_a_compressed_tensors_folder_is_dequantized_and_that_is_said(format: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "first", format=format)
    again = quantize(tmp_path / "first", tmp_path / "again", format="w8")
    assert any("is quantized already (compressed-tensors)" in text for text in again.notices)
    module = "model.layers.1.block_sparse_moe.experts.3.w2"
    first, second = (ModelFolder.open(tmp_path / name).linear(module) for name in ("first", "again"))
    assert isinstance(first, PackedLinear)
    assert isinstance(second, PackedLinear)
    lost = (first.dequantize() - second.dequantize()).square().sum() / first.dequantize().square().sum()
    assert lost < 1e-4


@pytest.mark.parametrize("format", ["w4", "w8"])
def test_kept_linears_are_the_very_bytes(format: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "first", format=format)
    for target in ("w4", "nl4"):
        result = quantize(tmp_path / "first", tmp_path / target, format=target, keep=True)
        first, kept = ModelFolder.open(tmp_path / "first"), ModelFolder.open(tmp_path / target)
        for module in ("model.layers.1.block_sparse_moe.experts.3.w2", "model.layers.0.self_attn.k_proj"):
            before, after = first.linear(module), kept.linear(module)
            assert isinstance(before, PackedLinear)
            assert isinstance(after, PackedLinear)
            assert before.scheme == after.scheme
            assert all(torch.equal(before.tensors[suffix], after.tensors[suffix]) for suffix in before.tensors)
        assert result.errors.worst[-1].relative_squared_error == 0


def test_nothing_to_keep(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--keep has nothing to copy"):
        quantize(source, tmp_path / "out", keep=True)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_an_unfinished_job(source: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "job.json").write_text("{}")
    refused(tmp_path / "half", tmp_path, "a quantize job was interrupted")


def test_the_fingerprint_follows_the_weights_not_the_place(source: Path, tmp_path: Path) -> None:
    first = open_source(source).fingerprint()
    write_tiny_mixtral(tmp_path / "copy", shards=3)
    assert open_source(tmp_path / "copy").fingerprint() == first
    write_tiny_mixtral(tmp_path / "other", shards=3, seed=1)
    assert open_source(tmp_path / "other").fingerprint() != first
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    assert open_source(source).fingerprint() != first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_kept_scales_that_are_no_numbers_are_refused(value: float, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "first", format="w4")
    path = next(iter(sorted((tmp_path / "first").glob("model-*.safetensors"))))
    tensors = load_file(path)
    tensors["model.layers.0.block_sparse_moe.experts.1.w1.weight_scale"][2, 1] = value
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"experts\.1\.w1 has scales that are NaN"):
        quantize(tmp_path / "first", tmp_path / "out", keep=True)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_checkpoint_that_is_overwritten_while_it_is_read(source: Path, tmp_path: Path) -> None:
    run = Job(source, tmp_path / "out").run()
    for _ in range(10):
        next(run)
    path = source / "model-00003-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-5000:] = bytes(5000)
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(ModelFileError, match="was changed while it was read"):
        list(run)
    assert not (tmp_path / "out" / "config.json").exists()
