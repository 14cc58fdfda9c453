"""GPTQ checkpoints: read as AutoGPTQ and GPTQModel pack them, kept where that loses nothing, damaged ones refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixq.errors import ModelFileError, UsageError
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize.job import quantize
from mixq.quantize.sources import column_groups
from mixq.quantize.sources.gptq import GptqSource
from mixq.quantize.sources.hub import Hub
from mixq.quantize.sources.open import open_place, open_source
from tests.fake_hub import FakeHub, folder_contents
from tests.packed_checkpoints import assert_same_model, change, configure, everything, usual, write_gptq

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"g_idx": False},
        {"act_order": True, "sym": False},
        {"checkpoint_format": "gptq", "group_size": 128, "sym": False},
        {"checkpoint_format": "gptq_v2", "sym": False, "packs": everything},
        {"group_size": -1, "act_order": True, "biases": True, "sliding_window": 4096},
        {"bits": 8, "act_order": True, "sym": False},
        {"bits": 8, "group_size": 16, "checkpoint_format": "gptq_v2", "packs": everything},
        {"bits": 2, "sym": False},
        {"group_size": 96, "sym": False},  # the last group of a row is shorter
        {"hidden": 96, "ffn": 160, "group_size": 64},
    ],
    ids=lambda options: "-".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items()),
)
def test_the_folder_is_that_of_the_dequantized_weights(options: dict[str, Any], tmp_path: Path) -> None:
    weights = write_gptq(tmp_path / "gptq", **options)
    source = assert_same_model(tmp_path / "gptq", weights, tmp_path)
    assert isinstance(source, GptqSource)
    assert any("is quantized already (gptq)" in text for text in source.notices)


@pytest.mark.parametrize(("checkpoint_format", "zero"), [(None, 3), ("gptq", 3), ("gptq_v2", 2)])
def test_eight_inputs_of_a_word_by_hand(checkpoint_format: str | None, zero: int, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.qweight"].fill_(0x76543210)
        tensors[f"{Q}.qzeros"].fill_(0x22222222)
        tensors[f"{Q}.scales"].fill_(0.5)

    write_gptq(tmp_path / "gptq", checkpoint_format=checkpoint_format)
    change(tmp_path / "gptq", edit)
    weight = open_source(tmp_path / "gptq").tensor(f"{Q}.weight")
    expected = torch.tensor([(q - zero) / 2 for q in range(8)]).repeat(16)
    assert torch.equal(weight, expected.expand(128, 128))


def test_a_column_takes_the_zero_and_the_scale_of_its_own_group_and_row(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.qweight"].fill_(-1)  # 15 everywhere
        tensors[f"{Q}.qzeros"].copy_(torch.tensor([0x00000000, 0x00000050, 0x11111111, -1])[:, None])
        tensors[f"{Q}.scales"].copy_(torch.tensor([1, 2, 4, 8])[:, None])
        tensors[f"{Q}.g_idx"].copy_(torch.arange(128) % 4)

    write_gptq(tmp_path / "gptq", act_order=True)
    change(tmp_path / "gptq", edit)
    weight = open_source(tmp_path / "gptq").tensor(f"{Q}.weight")
    assert weight[0, :4].tolist() == [14, 28, 52, 120]  # zeros 1, 1, 2 and, from all ones, 0
    assert weight[1, :4].tolist() == [14, 18, 52, 120]
    assert weight[9, 124:].tolist() == [14, 18, 52, 120]


def test_rows_are_dequantized_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_groups, "BLOCK_WEIGHTS", 1000)  # 7 rows of 128, the last block has 2
    weights = write_gptq(tmp_path / "gptq", act_order=True, sym=False)
    assert torch.equal(open_source(tmp_path / "gptq").tensor(f"{Q}.weight"), weights[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("options", "scheme"),
    [
        ({"group_size": 32}, "w4:32"),
        ({"group_size": 64, "g_idx": False}, "w4:64"),
        ({"group_size": 128, "checkpoint_format": "gptq_v2"}, "w4:128"),
        ({"group_size": -1, "act_order": True}, "w4:128"),
        ({"group_size": -1, "act_order": True, "hidden": 192, "ffn": 192}, "w4:64"),
        ({"group_size": 128, "hidden": 192, "ffn": 192}, "w4:64"),  # the last group of a row is half of one
        ({"bits": 8, "group_size": 128}, "w8:128"),
        ({"bits": 8, "group_size": -1}, "w8:128"),
    ],
)
def test_what_is_kept_is_the_same_to_the_last_bit(options: dict[str, Any], scheme: str, tmp_path: Path) -> None:
    weights = write_gptq(tmp_path / "gptq", **options)
    quantize(tmp_path / "gptq", tmp_path / "out", format="w8", group=32, keep=True)
    folder = ModelFolder.open(tmp_path / "out")
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if usual(module):
            linear = folder.linear(module)
            assert isinstance(linear, PackedLinear)
            assert str(linear.scheme) == scheme
            assert linear.tensors["weight_scale"].dtype == torch.float16
            assert torch.equal(linear.dequantize(), weight)


@pytest.mark.parametrize("options", [{"act_order": True}, {"sym": False}, {"group_size": 16}, {"bits": 2}])
def test_what_no_scheme_holds_is_not_kept(options: dict[str, Any], tmp_path: Path) -> None:
    write_gptq(tmp_path / "gptq", **options)
    with pytest.raises(UsageError, match="--keep has nothing to copy"):
        quantize(tmp_path / "gptq", tmp_path / "out", keep=True)


def test_one_linear_with_one_other_zero_is_not_kept(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.qzeros"][-1, -1] ^= 1 << 28

    write_gptq(tmp_path / "gptq", layers=2)
    change(tmp_path / "gptq", edit)
    result = quantize(tmp_path / "gptq", tmp_path / "out", format="w8", keep=True)
    assert any(text.startswith("q: quantized again") for text in result.notices)


def test_a_linear_with_scales_of_another_dtype_is_not_kept(tmp_path: Path) -> None:
    """A folder has one dtype: its kept scales must too."""
    name = f"{Q}.scales".replace("layers.0", "layers.1")
    write_gptq(tmp_path / "gptq", layers=2)
    change(tmp_path / "gptq", lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    result = quantize(tmp_path / "gptq", tmp_path / "out", format="w8", keep=True)
    assert any(text.startswith("q: quantized again") for text in result.notices)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("keep", [False, True])
def test_a_scale_that_is_no_number_is_refused(value: float, keep: bool, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.scales"][0, 3] = value

    write_gptq(tmp_path / "gptq")
    change(tmp_path / "gptq", edit)
    with pytest.raises(ModelFileError, match=r"q_proj\.(weight|scales) has .*NaN"):
        quantize(tmp_path / "gptq", tmp_path / "out", keep=keep)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_bias_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.bias"][7] = 1e-3

    write_gptq(tmp_path / "gptq", biases=True)
    change(tmp_path / "gptq", edit)
    with pytest.raises(ModelFileError, match=r"q_proj\.bias is not zero"):
        open_source(tmp_path / "gptq")


@pytest.mark.parametrize("group", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("keep", [False, True])
def test_a_group_that_is_not_there_is_refused(group: int, keep: bool, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.g_idx"][5] = group

    write_gptq(tmp_path / "gptq")
    change(tmp_path / "gptq", edit)
    with pytest.raises(ModelFileError, match=r"q_proj\.g_idx has groups from .*; there are 4"):
        quantize(tmp_path / "gptq", tmp_path / "out", keep=keep)


@pytest.mark.parametrize(
    ("quantization", "match"),
    [
        ({"bits": 3}, "bits is 3; it must be one of 2, 4, 8"),
        ({"bits": 4.0}, r"bits is 4\.0"),
        ({"bits": True}, "bits is True"),
        ({"bits": None}, "bits is missing"),
        ({"bits": [4]}, r"bits is \[4\]"),
        ({"bits": 8}, r"qweight' has shape \[16, 128\]; config\.json asks for \[32, 128\]"),
        ({"group_size": 0}, "group_size is 0; it must be a positive size, or -1"),
        ({"group_size": -2}, "group_size is -2"),
        ({"group_size": 2**80}, "group_size is 1208"),
        ({"group_size": None}, "group_size is missing"),
        ({"group_size": -1}, r"qzeros' has shape \[4, 16\]; config\.json asks for \[1, 16\]"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; it must be 'gptq' or 'gptq_v2'"),
        ({"checkpoint_format": ["gptq"]}, "checkpoint_format is"),
        ({"is_marlin_format": True}, "is_marlin_format is True"),
        ({"pack_dtype": "int64"}, "pack_dtype is 'int64'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(quantization: dict[str, object], match: str, tmp_path: Path) -> None:
    write_gptq(tmp_path / "gptq")
    configure(tmp_path / "gptq", **quantization)
    with pytest.raises(ModelFileError, match=match):
        open_source(tmp_path / "gptq")


@pytest.mark.parametrize(
    ("suffix", "tensor", "match"),
    [
        ("qweight", torch.zeros(16, 64, dtype=torch.int32), r"has shape \[16, 64\]; config\.json asks for \[16, 128\]"),
        ("qweight", torch.zeros(2048, dtype=torch.int32), r"has shape \[2048\]"),
        ("qweight", torch.zeros(0, 128, dtype=torch.int32), r"has shape \[0, 128\]"),
        ("qweight", torch.zeros(16, 128), "is float32; it must be int32"),
        ("qzeros", torch.zeros(4, 17, dtype=torch.int32), r"has shape \[4, 17\]"),
        ("scales", torch.zeros(3, 128, dtype=torch.float16), r"has shape \[3, 128\]"),
        ("scales", torch.zeros(4, 128, dtype=torch.int16), "is int16; it must be float16, bfloat16"),
        ("g_idx", torch.zeros(127, dtype=torch.int32), r"has shape \[127\]"),
        ("g_idx", torch.zeros(128), "is float32; it must be int32, int64"),
        ("bias", torch.zeros(64, dtype=torch.float16), r"has shape \[64\]"),
        ("weight", torch.zeros(128, 128, dtype=torch.float16), "is not part of the MixtralForCausalLM"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(suffix: str, tensor: Tensor, match: str, tmp_path: Path) -> None:
    write_gptq(tmp_path / "gptq")
    change(tmp_path / "gptq", lambda tensors: tensors.update({f"{Q}.{suffix}": tensor}))
    with pytest.raises(ModelFileError, match=rf"{Q}\.{suffix}' {match}".replace(".self", r"\.self")):
        open_source(tmp_path / "gptq")


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_a_tensor_that_is_missing(suffix: str, tmp_path: Path) -> None:
    write_gptq(tmp_path / "gptq")
    change(tmp_path / "gptq", lambda tensors: tensors.pop(f"{Q}.{suffix}"))
    with pytest.raises(ModelFileError, match=r"q_proj\.(weight|qzeros|scales)' is missing"):
        open_source(tmp_path / "gptq")


def test_outputs_that_fill_no_words_are_refused(tmp_path: Path) -> None:
    """Four experts have a router of four outputs: half a word of zeros."""

    def edit(tensors: dict[str, Tensor]) -> None:
        gate = "model.layers.0.block_sparse_moe.gate"
        del tensors[f"{gate}.weight"]
        tensors[f"{gate}.qweight"] = torch.zeros(16, 4, dtype=torch.int32)

    write_gptq(tmp_path / "gptq", experts=4)
    change(tmp_path / "gptq", edit)
    with pytest.raises(
        ModelFileError, match=r"gate\.qzeros: a row has 4 codes of 4 bits, which do not fill whole words"
    ):
        open_source(tmp_path / "gptq")


def test_a_config_without_any_packed_linear_is_refused(tmp_path: Path) -> None:
    write_gptq(tmp_path / "gptq", packs=lambda module: False)
    with pytest.raises(ModelFileError, match="no linear layer is packed"):
        open_source(tmp_path / "gptq")


@pytest.mark.parametrize("keep", [False, True])
def test_a_repository_of_a_hub_gives_the_same_folder(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gptq(tmp_path / "gptq", biases=True)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({"someone/tiny-gptq": folder_contents(tmp_path / "gptq")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        quantize(open_place(Hub("someone/tiny-gptq", None)), tmp_path / "out", keep=keep)
    quantize(tmp_path / "gptq", tmp_path / "expected", keep=keep)
    shards = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("out", "expected")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
