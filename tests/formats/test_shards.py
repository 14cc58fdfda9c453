"""Index files that lie, shards that are missing, and Hugging Face's cache of links."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixq.errors import ModelFileError
from mixq.formats.shards import INDEX, ShardSet

STORED = {f"model.layers.{i}.w.weight": torch.full((3,), float(i)) for i in range(5)}


@pytest.fixture
def sharded(tmp_path: Path, folders: SimpleNamespace) -> Path:
    folders.write_shards(tmp_path, STORED, 3)
    return tmp_path


def set_index(folder: Path, content: Any) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / INDEX).write_bytes(text)


def weight_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
    return found


def test_every_tensor_is_found(sharded: Path) -> None:
    shards = ShardSet.open(sharded)
    assert [shard.path.name for shard in shards.shards] == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert all(shards.tensor(name).equal(tensor) for name, tensor in STORED.items())
    assert shards.nbytes == 5 * 12
    assert shards.entry("other") is None


def test_missing_shards_are_counted_and_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"1 of 3 shards are missing: model-00002-of-00003\.safetensors") as caught:
        ShardSet.open(sharded)
    assert caught.value.hint is not None


ELSEWHERE = [
    *("../model.safetensors", "/etc/passwd", "/etc/x.safetensors", "a/b.safetensors", "", ".", "..", "~/a.safetensors"),
    *("..\\a.safetensors", "C:\\a.safetensors", "C:a.safetensors", "\\\\host\\share\\a.safetensors"),
    *("a\0.safetensors", "a\n.safetensors", "a.safetensors\n", "\x1b[2J.safetensors", "ä.safetensors"),
    *("$HOME.safetensors", "file:a.safetensors", "http://h/a.safetensors", "a" * 300 + ".safetensors"),
    *("pytorch_model.bin", "model.pth", "a.safetensors.pkl", 7, None, ["a.safetensors"]),
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_index_cannot_name_a_file_elsewhere(name: Any, sharded: Path) -> None:
    (sharded.parent / "model.safetensors").write_bytes((sharded / "model-00001-of-00003.safetensors").read_bytes())
    set_index(sharded, {"weight_map": {**weight_map(sharded), "model.layers.0.w.weight": name}})
    with pytest.raises(ModelFileError, match="is not the name of a") as caught:
        ShardSet.open(sharded)
    assert caught.value.message.isprintable()


BROKEN = [
    *(b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000),
    *({"weight_map": {}}, {"weight_map": []}, {"weight_map": None}, {"weight_map": "model.safetensors"}),
    b'{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_index(content: Any, sharded: Path) -> None:
    set_index(sharded, content)
    with pytest.raises(ModelFileError, match=r"index\.json"):
        ShardSet.open(sharded)


def test_an_index_of_gigabytes_is_not_read(sharded: Path) -> None:
    with (sharded / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="at most"):
        ShardSet.open(sharded)


def test_an_index_of_thousands_of_shards(sharded: Path) -> None:
    set_index(sharded, {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(5000)}})
    with pytest.raises(ModelFileError, match="more than 4096 shards"):
        ShardSet.open(sharded)


def test_an_index_that_puts_a_tensor_elsewhere(sharded: Path) -> None:
    moved = {**weight_map(sharded), "model.layers.0.w.weight": "model-00003-of-00003.safetensors"}
    set_index(sharded, {"weight_map": moved})
    with pytest.raises(ModelFileError, match="is not in model-00003"):
        ShardSet.open(sharded)


def test_an_index_with_a_tensor_that_no_shard_has(sharded: Path) -> None:
    extra = {**weight_map(sharded), "\x1b[31mextra": "model-00003-of-00003.safetensors"}
    set_index(sharded, {"weight_map": extra})
    with pytest.raises(ModelFileError, match="extra' is not in model-00003") as caught:
        ShardSet.open(sharded)
    assert caught.value.message.isprintable()


def test_a_tensor_in_two_shards(sharded: Path, folders: SimpleNamespace) -> None:
    name = "model-00002-of-00003.safetensors"
    first = (sharded / "model-00001-of-00003.safetensors").read_bytes()
    (sharded / name).write_bytes(first)
    with pytest.raises(ModelFileError, match="is in two shards"):
        ShardSet.open(sharded)


def test_the_cache_of_hugging_face_is_made_of_links(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """snapshots/REVISION/NAME -> ../../blobs/SHA, as huggingface_hub lays it out."""
    hub = tmp_path_factory.mktemp("hub") / "models--mistralai--Mixtral-8x7B-v0.1"
    snapshot, blobs = hub / "snapshots" / "0123abcd", hub / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(sharded.iterdir())):
        (blobs / f"sha{i}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"sha{i}")
    shards = ShardSet.open(snapshot)
    assert all(shards.tensor(name).equal(tensor) for name, tensor in STORED.items())
    (blobs / "sha0").unlink()
    with pytest.raises(ModelFileError, match="1 of 3 shards are missing"):
        ShardSet.open(snapshot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_shard_does_not_hang(sharded: Path) -> None:
    (sharded / "model-00001-of-00003.safetensors").unlink()
    os.mkfifo(sharded / "model-00001-of-00003.safetensors")
    with pytest.raises(ModelFileError, match="not a regular file"):
        ShardSet.open(sharded)


def test_other_weights_are_named_and_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode())
    with pytest.raises(ModelFileError, match="has neither") as caught:
        ShardSet.open(tmp_path)
    assert "pytorch_model.bin cannot be loaded" in str(caught.value.hint)
    assert not canary.exists()


def test_an_unfinished_quantize_job_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFileError) as caught:
        ShardSet.open(tmp_path)
    assert "mixq quantize" in str(caught.value.hint)
