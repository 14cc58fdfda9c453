"""Mapped tensors are views, outlive their shard, and never change the file."""

from __future__ import annotations

import gc
import json
import struct
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixq.errors import ModelFileError
from mixq.formats.mapped import MappedShard


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {
        "codes": torch.arange(7, dtype=torch.uint8),
        "weight": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False, True]),
    }
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", tensors


def test_tensors_are_views_without_a_warning(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shard = MappedShard(path)
        read = {name: shard.tensor(name) for name in tensors}
    for name, tensor in tensors.items():
        assert read[name].equal(tensor)
        assert read[name].shape == tensor.shape
    assert shard.tensor("weight").data_ptr() == read["weight"].data_ptr()  # no copy
    start = shard.header.entries["codes"].start - shard.header.entries["weight"].start
    assert read["codes"].data_ptr() - read["weight"].data_ptr() == start


def test_tensors_outlive_the_shard(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = saved
    weight = MappedShard(path).tensor("weight")
    path.unlink()
    gc.collect()
    assert weight.equal(tensors["weight"])


def test_writing_into_a_tensor_does_not_reach_the_file(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = saved
    before = path.read_bytes()
    shard = MappedShard(path)
    shard.tensor("weight").fill_(7)
    del shard
    gc.collect()
    assert path.read_bytes() == before


def test_unaligned_data_are_read_rightly(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, 3e9])
    data = b"\7" + values.numpy().tobytes()
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "unaligned.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    read = MappedShard(path).tensor("b")
    assert read.equal(values)
    assert read.data_ptr() % 4 == 0  # kernels may take that for granted


def test_no_tensor_of_that_name(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(KeyError):
        MappedShard(saved[0]).tensor("other")


def test_a_file_cut_at_any_place_is_refused(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    whole = saved[0].read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(0, len(whole), max(1, len(whole) // 100)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            MappedShard(cut)
