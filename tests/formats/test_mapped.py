"""Mapped tensors are views, outlive their shard, and never change the file."""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixq.errors import ModelFileError
from mixq.formats import mapped
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


linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are advised on Linux alone")


@pytest.fixture
def paged(tmp_path: Path) -> tuple[MappedShard, torch.Tensor]:
    """A shard of 64 pages and a bit, none of them in memory."""
    values = torch.arange(64 * mapped.PAGE // 4 + 10, dtype=torch.int32)
    safetensors.torch.save_file({"a": values}, tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("rb") as file:
        os.fsync(file.fileno())  # pages that are not written yet cannot be given back
    shard = MappedShard(tmp_path / "a.safetensors")
    shard.advise_away(0, shard.header.file_size)
    return shard, values


@linux
@pytest.mark.parametrize("old_kernel", [False, True])
def test_pages_are_read_in_and_given_back(
    paged: tuple[MappedShard, torch.Tensor], old_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, values = paged
    size = shard.header.file_size
    if old_kernel:
        monkeypatch.setattr(mapped, "_POPULATE_READ", 9999)  # an advice that no kernel knows
    assert mapped.why_no_advice() is None
    assert shard.resident(0, 40 * mapped.PAGE) == 0
    shard.read_in(0, size)
    assert shard.resident(0, size) == 65 * mapped.PAGE
    assert shard.tensor("a").equal(values)
    assert shard.advise_away(0, size) == 64 * mapped.PAGE  # the last page is not full
    assert shard.resident(0, size) <= mapped.PAGE
    assert shard.tensor("a").equal(values)


@linux
def test_neighbours_of_what_is_given_back_stay(paged: tuple[MappedShard, torch.Tensor]) -> None:
    shard, _ = paged
    shard.read_in(0, shard.header.file_size)
    page = mapped.PAGE
    assert shard.advise_away(3 * page + 1, 5 * page - 1) == 0  # no whole page lies in between
    assert shard.advise_away(7, 7) == 0
    assert shard.resident(0, 64 * page) == 64 * page


@linux
def test_reading_in_takes_whole_pages(paged: tuple[MappedShard, torch.Tensor]) -> None:
    shard, _ = paged
    page = mapped.PAGE
    shard.read_in(10 * page + 100, 12 * page + 1)
    assert shard.resident(10 * page, 13 * page) == 3 * page
    shard.read_in(5, 5)


def test_elsewhere_nothing_is_known_of_pages(
    saved: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_libc", lambda: None)
    assert mapped.why_no_advice() is not None
    shard = MappedShard(saved[0])
    assert shard.resident(0, 100) == 0
    with pytest.raises(OSError, match="not implemented"):
        shard.read_in(0, 100)


def test_the_read_ahead_of_a_device_that_does_not_say(
    saved: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MappedShard(saved[0]).read_ahead >= 0
    monkeypatch.setattr(os, "major", lambda device: 99999)
    assert MappedShard(saved[0]).read_ahead == 128 << 10
