"""Hugging Face's pickled checkpoints: read only where that was allowed, and never run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import ModelFileError, UsageError
from mixq.quantize.job import quantize
from mixq.quantize.sources import pickled
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral
from tests.packed_checkpoints import TOKENS, shards_of

INDEX = "pytorch_model.bin.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"


def write_bin(path: Path, tensors: dict[str, Tensor], like: Path, files: int = 1) -> None:
    """Write pytorch_model.bin, or an index and its parts."""
    path.mkdir()
    (path / "config.json").write_bytes((like / "config.json").read_bytes())
    if files == 1:
        torch.save(tensors, path / "pytorch_model.bin")
        return
    names, weight_map = list(tensors), {}
    for i in range(files):
        file, part = f"pytorch_model-{i + 1:05d}-of-{files:05d}.bin", names[i::files]
        torch.save({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, Tensor]:
    return write_tiny_mixtral(tmp_path / "reference", layers=1, tokenizer=False)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelFileError, match=match):
        open_source(path, allow_pickle=True)


@pytest.mark.parametrize("files", [1, 3])
def test_the_folder_is_that_of_the_safetensors(files: int, reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference", files)
    quantize(open_source(tmp_path / "bin", allow_pickle=True), tmp_path / "out")
    quantize(tmp_path / "reference", tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    found, expected = (mixq.load(tmp_path / name).forward(TOKENS) for name in ("out", "expected"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("files", [1, 3])
def test_refused_unless_it_is_allowed(files: int, reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference", files)
    for attempt in (open_source, lambda path: quantize(path, tmp_path / "out")):
        with pytest.raises(UsageError) as error:
            attempt(tmp_path / "bin")
        assert "--allow-pickle" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


class Program:
    """An object that, unpickled by anything but a restricted unpickler, writes a canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("place", ["beside", "inside", "alone", "second file"])
def test_a_program_is_refused_and_never_runs(place: str, reference: dict[str, Tensor], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    program = Program(canary)
    write_bin(tmp_path / "bin", reference, tmp_path / "reference", 3 if place == "second file" else 1)
    path = tmp_path / "bin" / "pytorch_model.bin"
    if place == "second file":
        path = tmp_path / "bin" / "pytorch_model-00002-of-00003.bin"
    content: object = {**torch.load(path, weights_only=True), "extra": program}
    if place == "inside":
        content = {"state_dict": content}
    torch.save(program if place == "alone" else content, path)
    refused(tmp_path / "bin", f"{path.name} contains objects other than tensors and was not loaded")
    assert not canary.exists()
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):  # the canary works: unrestricted, it runs
        torch.load(path, weights_only=False).no_such_attribute  # noqa: B018
    assert canary.exists()


def test_a_bare_pickle_is_refused_and_never_runs(reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(pickle.dumps(Program(tmp_path / "canary")))
    refused(tmp_path / "bin", "is truncated, or not a PyTorch file")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(kept: float, reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    path = tmp_path / "bin" / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(tmp_path / "bin", r"pytorch_model\.bin is (truncated|damaged)")


def test_files_that_are_not_of_torch(reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    path = tmp_path / "bin" / "pytorch_model.bin"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    refused(tmp_path / "bin", "is truncated, or not a PyTorch file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a zip file of something else")
    refused(tmp_path / "bin", "is damaged")
    torch.save(reference, path, _use_new_zipfile_serialization=False)
    refused(tmp_path / "bin", "not a PyTorch file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2, 3], "contains a list, not named tensors"),
        ({"step": 7}, "'step' is not a plain tensor"),
        ({5: torch.zeros(1)}, "5 is not a tensor name"),
        ({"../../etc": torch.zeros(1)}, "is not a tensor name"),
        ({"sparse": torch.eye(3).to_sparse()}, "'sparse' is not a plain tensor"),
        ({"model.norm.weight": torch.zeros(128)}, "is missing"),
    ],
)
def test_content_that_is_no_checkpoint(
    content: object, match: str, reference: dict[str, Tensor], tmp_path: Path
) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    torch.save(content, tmp_path / "bin" / "pytorch_model.bin")
    refused(tmp_path / "bin", match)


def test_a_flipped_byte_anywhere_is_a_clear_error_or_another_weight(tmp_path: Path) -> None:
    reference = write_tiny_mistral(tmp_path / "reference", hidden=32, ffn=32, layers=1, vocab=16, tokenizer=False)
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    path = tmp_path / "bin" / "pytorch_model.bin"
    content = path.read_bytes()
    refusals = 0
    for position in range(0, len(content), 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            source = open_source(tmp_path / "bin", allow_pickle=True)
            assert source.tensor(Q).shape == (32, 32)
        except ModelFileError:
            refusals += 1
    assert refusals > 0


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02K\x05Q.",  # a storage whose name is a number
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # a tensor made of nothing
        b"\x80\x02}}K\x01s}K\x01s.",  # a dict as a key
    ],
)
def test_a_senseless_pickle(program: bytes, reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    path = tmp_path / "bin" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, program if name.endswith("/data.pkl") else content)
    refused(tmp_path / "bin", "pytorch_model.bin is damaged")


def test_a_missing_part_and_an_index_that_leaves_the_folder(reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference", 3)
    (tmp_path / "bin" / "pytorch_model-00002-of-00003.bin").unlink()
    refused(tmp_path / "bin", r"pytorch_model-00002-of-00003\.bin is missing")
    for name in ("../reference/model.bin", "/etc/passwd", "model.safetensors"):
        (tmp_path / "bin" / INDEX).write_text(json.dumps({"weight_map": {Q: name}}))
        refused(tmp_path / "bin", "is not the name of a weight file")


def test_a_tensor_in_two_files(reference: dict[str, Tensor], tmp_path: Path) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference", 3)
    path = tmp_path / "bin" / "pytorch_model-00003-of-00003.bin"
    torch.save({**torch.load(path, weights_only=True), "model.embed_tokens.weight": torch.zeros(2)}, path)
    refused(tmp_path / "bin", "'model.embed_tokens.weight' is in two files")


def test_tied_shared_and_transposed_tensors(tmp_path: Path) -> None:
    """torch saves views as views: two names on one storage, rows that are no neighbours, a state_dict in a dict."""
    tensors = write_tiny_mixtral(tmp_path / "reference", layers=1, tokenizer=False, tie_word_embeddings=True)
    saved = dict(tensors)
    saved["lm_head.weight"] = saved["model.embed_tokens.weight"]
    saved[Q] = tensors[Q].T.contiguous().T
    both = torch.cat([tensors[Q.replace("q_proj", name)] for name in ("k_proj", "v_proj")])
    saved[Q.replace("q_proj", "k_proj")], saved[Q.replace("q_proj", "v_proj")] = both.chunk(2)
    w1 = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    wide = torch.zeros(256, 256, dtype=torch.bfloat16)
    wide[:, ::2] = tensors[w1]
    saved[w1] = torch.nn.Parameter(wide[:, ::2])
    assert not any(saved[name].is_contiguous() for name in (Q, w1))
    write_bin(tmp_path / "bin", {}, tmp_path / "reference")
    torch.save({"state_dict": saved}, tmp_path / "bin" / "pytorch_model.bin")
    quantize(open_source(tmp_path / "bin", allow_pickle=True), tmp_path / "out")
    quantize(tmp_path / "reference", tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_an_older_torch_is_refused(
    reference: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bin(tmp_path / "bin", reference, tmp_path / "reference")
    for version in ("2.9.1", "1.13", "nightly"):
        monkeypatch.setattr(pickled.torch, "__version__", version)
        with pytest.raises(UsageError, match="cannot read pickled files safely"):
            open_source(tmp_path / "bin", allow_pickle=True)
