"""Shards that the real library reads, and writes that fail without leaving anything."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import StorageError
from mixq.formats.atomic import atomic_write_bytes, atomic_write_json
from mixq.formats.header import DTYPES, read_header
from mixq.formats.mapped import MappedShard
from mixq.formats.shard_writer import ShardWriter, shard_size


def specs_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    with ShardWriter(path, specs_of(tensors)) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
        return writer.finish()


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abcXYZ019._-", min_size=1, max_size=30).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=8,
    )
)
def test_the_library_reads_what_is_written(tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any]) -> None:
    tensors = {
        name: torch.randint(0, 2, shape, dtype=torch.uint8).to(DTYPES[dtype]) for name, (dtype, shape) in chosen.items()
    }
    folder = tmp_path_factory.mktemp("written")
    digest = write(folder / "ours.safetensors", tensors)
    content = (folder / "ours.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    assert len(content) == shard_size(specs_of(tensors))
    assert (8 + struct.unpack("<Q", content[:8])[0]) % 4096 == 0
    read = safetensors.torch.load(content)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))
    # The tensors stand in the library's own order.
    safetensors.torch.save_file(tensors, folder / "theirs.safetensors", {"format": "pt"})
    ours, theirs = read_header(folder / "ours.safetensors"), read_header(folder / "theirs.safetensors")
    assert ours.metadata == theirs.metadata
    for name, entry in theirs.entries.items():
        assert entry.start - theirs.data_start == ours.entries[name].start - ours.data_start


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 3) for i in range(5)}
    first = write(tmp_path / "a.safetensors", tensors)
    assert first == write(tmp_path / "b.safetensors", dict(reversed(tensors.items())))


def test_views_and_slices_are_written_by_value(tmp_path: Path) -> None:
    base = torch.arange(24).reshape(4, 6)
    tensors = {"transposed": base.T, "slice": base[:, 1:3], "scalar": torch.tensor(5)}
    write(tmp_path / "a.safetensors", tensors)
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(read[name].equal(tensor) for name, tensor in tensors.items())


def test_nothing_stands_under_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(4), "b": torch.ones(4)}
    with ShardWriter(path, specs_of(tensors)) as writer:
        writer.write("a", tensors["a"])
        assert not path.exists()
        with pytest.raises(ValueError, match="1 tensors were not written, such as b"):
            writer.finish()
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_old_shard_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": torch.ones(4)})

    def interrupted(name: str) -> torch.Tensor:
        raise KeyboardInterrupt(name)

    with pytest.raises(KeyboardInterrupt), ShardWriter(path, {"a": (torch.float32, (4,))}) as writer:
        writer.write("a", interrupted("a"))
    assert MappedShard(path).tensor("a").equal(torch.ones(4))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_shape_or_dtype_than_the_spec_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.safetensors", {"a": (torch.float32, (4,))}) as writer:
        for tensor in (torch.ones(5), torch.ones(4).half(), torch.ones(2, 2)):
            with pytest.raises(ValueError, match="its spec says"):
                writer.write("a", tensor)
        with pytest.raises(KeyError):
            writer.write("b", torch.ones(4))


def test_a_name_that_no_reader_would_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        ShardWriter(tmp_path / "a.safetensors", {"../x": (torch.float32, (4,))})


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_leaves_nothing(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    if call == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, call, fail, raising=False)
    path = tmp_path / "a.safetensors"
    with pytest.raises(StorageError) as caught:
        write(path, {"a": torch.ones(1024)})
    assert caught.value.exit_code == 5
    if code == errno.ENOSPC:
        assert f"{shard_size({'a': (torch.float32, (1024,))}):,} bytes" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_reservation_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    write(tmp_path / "a.safetensors", {"a": torch.ones(1024)})
    assert MappedShard(tmp_path / "a.safetensors").tensor("a").equal(torch.ones(1024))


def test_a_folder_that_is_not_there_or_not_writable(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write(tmp_path / "none" / "a.safetensors", {"a": torch.ones(4)})
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write(tmp_path / "file" / "a.safetensors", {"a": torch.ones(4)})
    with pytest.raises(StorageError):
        atomic_write_bytes(tmp_path / "file" / "a.json", b"{}")


def test_a_reader_of_the_old_file_never_sees_half_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    atomic_write_bytes(path, b"old content")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        atomic_write_bytes(path, b"new")
        assert reader.read() == b" content"
    assert path.read_bytes() == b"new"


def test_atomic_files_are_whole_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    atomic_write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"\(4 bytes\) does not fit") as caught:
            atomic_write_bytes(path, b"new!")
    assert caught.value.hint is not None
    assert path.read_text(encoding="utf-8").startswith("{")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_an_experts_matrices_lie_side_by_side_and_aligned(tmp_path: Path) -> None:
    """What mixq/README.md says of uploads, at Mixtral's own sizes (the header alone is written)."""
    from mixq.config import ModelConfig
    from mixq.formats.architecture import layer_parameters
    from mixq.formats.packed import tensor_specs
    from mixq.formats.scheme import Scheme
    from mixq.formats.shard_writer import shard_layout

    config = ModelConfig.from_dict({
        "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    })  # fmt: skip
    specs = {
        f"{p.module}.{suffix}": spec
        for p in layer_parameters(config, 3)
        if p.role == "expert"
        for suffix, spec in tensor_specs(Scheme("nl4", 32), (p.shape[0], p.shape[1])).items()
    }
    _, entries = shard_layout(specs)
    assert all(entry.start % 64 == 0 for entry in entries.values())
    for suffix in ("weight_codes", "weight_scale", "weight_row_scale"):
        w1, w2, w3 = (entries[f"model.layers.3.block_sparse_moe.experts.5.{w}.{suffix}"] for w in ("w1", "w2", "w3"))
        if suffix == "weight_codes":
            assert w1.end == w2.start
            assert w2.end == w3.start


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_json_is_refused_before_anything_is_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(tmp_path / "a.json", {"error": value})
    assert not list(tmp_path.iterdir())
