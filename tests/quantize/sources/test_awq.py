"""AWQ checkpoints: read as AutoAWQ packs them, kept where they are symmetric, refused where they lie otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixq.errors import ModelFileError, UsageError
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize.job import quantize
from mixq.quantize.sources.awq import AwqSource
from mixq.quantize.sources.open import open_source
from tests.packed_checkpoints import assert_same_model, change, configure, everything, usual, write_awq

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("packs", [usual, everything])
def test_the_folder_is_that_of_the_dequantized_weights(group_size: int, packs: object, tmp_path: Path) -> None:
    weights = write_awq(tmp_path / "awq", group_size=group_size, packs=packs, sliding_window=4096)
    source = assert_same_model(tmp_path / "awq", weights, tmp_path)
    assert isinstance(source, AwqSource)
    assert any("is quantized already (awq)" in text for text in source.notices)


def test_eight_outputs_of_a_word_by_hand(tmp_path: Path) -> None:
    """0x75316420, lowest first 0 2 4 6 1 3 5 7, are the outputs 0 to 7 in their order."""

    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.qweight"].fill_(0x75316420)
        tensors[f"{Q}.qzeros"].fill_(0x11111111)
        tensors[f"{Q}.scales"].fill_(0.5)

    write_awq(tmp_path / "awq")
    change(tmp_path / "awq", edit)
    weight = open_source(tmp_path / "awq").tensor(f"{Q}.weight")
    expected = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]).repeat(16)
    assert torch.equal(weight, expected[:, None].expand(128, 128))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_symmetric_linears_are_kept_without_loss(group_size: int, tmp_path: Path) -> None:
    weights = write_awq(tmp_path / "awq", group_size=group_size, sym=True)
    quantize(tmp_path / "awq", tmp_path / "out", format="w8", keep=True)
    folder = ModelFolder.open(tmp_path / "out")
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if usual(module):
            linear = folder.linear(module)
            assert isinstance(linear, PackedLinear)
            assert str(linear.scheme) == f"w4:{group_size}"
            assert linear.tensors["weight_scale"].dtype == torch.float16
            assert torch.equal(linear.dequantize(), weight)


def test_asymmetric_linears_cannot_be_kept(tmp_path: Path) -> None:
    write_awq(tmp_path / "awq")
    with pytest.raises(UsageError, match="--keep has nothing to copy"):
        quantize(tmp_path / "awq", tmp_path / "out", keep=True)


def test_the_names_of_an_older_config(tmp_path: Path) -> None:
    weights = write_awq(tmp_path / "awq")
    configure(tmp_path / "awq", bits=None, group_size=None, version="GEMM", w_bit=4, q_group_size=32)
    assert torch.equal(open_source(tmp_path / "awq").tensor(f"{Q}.weight"), weights[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("quantization", "match"),
    [
        ({"version": "gemv"}, "version is 'gemv'; it must be 'gemm'"),
        ({"version": "marlin"}, "version is 'marlin'"),
        ({"version": 3}, "version is 3"),
        ({"backend": "llm-awq"}, "backend is 'llm-awq'"),
        ({"bits": 8}, "bits is 8; it must be 4"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "128"}, "group_size is '128'"),
        ({"group_size": 64}, r"qzeros' has shape \[4, 16\]; config\.json asks for \[2, 16\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(quantization: dict[str, object], match: str, tmp_path: Path) -> None:
    write_awq(tmp_path / "awq")
    configure(tmp_path / "awq", **quantization)
    with pytest.raises(ModelFileError, match=match):
        open_source(tmp_path / "awq")


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_tensors_that_do_not_fit_are_refused(suffix: str, tmp_path: Path) -> None:
    name = f"{Q}.{suffix}"
    write_awq(tmp_path / "awq")
    change(tmp_path / "awq", lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    with pytest.raises(ModelFileError, match=f"{suffix}' has shape"):
        open_source(tmp_path / "awq")
    change(tmp_path / "awq", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelFileError, match=r"is missing|is not part of"):
        open_source(tmp_path / "awq")


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_tensors_of_another_dtype_are_refused(suffix: str, tmp_path: Path) -> None:
    name = f"{Q}.{suffix}"
    write_awq(tmp_path / "awq")
    change(tmp_path / "awq", lambda tensors: tensors.update({name: tensors[name].to(torch.float64)}))
    with pytest.raises(ModelFileError, match=f"{suffix}' is float64; it must be"):
        open_source(tmp_path / "awq")
