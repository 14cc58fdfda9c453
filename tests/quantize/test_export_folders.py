"""An exported folder holds the weights of the one it was made of, and keeps what it can as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixq.errors import UsageError
from mixq.formats.architecture import parameters
from mixq.formats.scheme import Scheme
from mixq.quantize import quantize
from mixq.quantize.export.folders import compressed_tensors_job
from mixq.quantize.export.gguf_file import GgufExport
from mixq.quantize.job import Job
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mixtral


def test_bf16_folder_of_a_packed_one_holds_its_weights(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "packed")
    packed = open_source(tmp_path / "packed", mixq_folders=True)
    for _ in Job(packed, tmp_path / "dense", format="bf16").run():
        pass
    dense = open_source(tmp_path / "dense")
    for parameter in parameters(dense.config):
        expected = packed.tensor(parameter.name).to(torch.bfloat16)
        assert torch.equal(dense.tensor(parameter.name), expected), parameter.name
    assert dense.side_files()["tokenizer.model"] == b"not a real one"


def test_compressed_tensors_folder_of_an_nl4_one_keeps_what_it_can(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "packed")
    packed = open_source(tmp_path / "packed", mixq_folders=True)
    for _ in compressed_tensors_job(packed, tmp_path / "ct").run():
        pass
    made = open_source(tmp_path / "ct", mixq_folders=True)
    schemes = {p.module.rsplit(".", 1)[-1]: made.kept(p) for p in parameters(made.config) if p.quantizable}
    eight, four = Scheme("w8", 128), Scheme("w4", 32)
    attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), eight)
    assert schemes == attention | dict.fromkeys(("w1", "w2", "w3"), four) | {"lm_head": None}
    for name in ("k_proj", "v_proj"):
        before, after = (s.packed(f"model.layers.1.self_attn.{name}").tensors for s in (packed, made))
        assert all(torch.equal(before[suffix], after[suffix]) for suffix in before)


def test_compressed_tensors_folder_refuses_other_formats(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    with pytest.raises(UsageError, match=r"--format must be w4 or w8"):
        compressed_tensors_job(open_source(tmp_path / "source"), tmp_path / "ct", "nl4")


def test_gguf_and_back_is_the_same_model(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    GgufExport(open_source(tmp_path / "source"), tmp_path / "model.gguf").run()
    back = open_source(tmp_path / "model.gguf")
    assert back.config == open_source(tmp_path / "source").config
    for name, tensor in tensors.items():
        assert torch.equal(back.tensor(name).float(), tensor.float()), name
