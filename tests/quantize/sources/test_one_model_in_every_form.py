"""One tiny model, written in every form that a user may have: the same shards, so the same logits, from all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.quantize.job import quantize
from mixq.quantize.sources.hub import Hub
from mixq.quantize.sources.open import open_place, open_source
from mixq.quantize.sources.source import Source
from tests.checkpoints import write_tiny_mixtral
from tests.fake_hub import FakeHub, folder_contents
from tests.gguf_files import write_gguf
from tests.mistral_checkpoints import write_eight_parts, write_release

IDS = [1, 17, 42, 5, 60, 33, 8]
Write = Callable[[Path, dict[str, Tensor], dict[str, Any]], Path]


def fused(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    write_tiny_mixtral(path, layout="fused", shards=2)
    return path


def pickled(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw))
    torch.save(tensors, path / "pytorch_model.bin")
    return path


def release(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    write_release(path, tensors, raw)
    return path


def release_pickled(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    write_release(path, tensors, raw, pickled=True)
    return path


def eight_parts(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    write_eight_parts(path, tensors, raw)
    return path


def gguf(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    pytest.importorskip("gguf")
    write_gguf(path.with_suffix(".gguf"), tensors, raw)
    return path.with_suffix(".gguf")


def gguf_of_single_experts(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any]) -> Path:
    pytest.importorskip("gguf")
    write_gguf(path.with_suffix(".gguf"), tensors, raw, old_names=True)
    return path.with_suffix(".gguf")


FORMS: list[Write] = [fused, pickled, release, release_pickled, eight_parts, gguf, gguf_of_single_experts]


def logits_and_shards(source: Source, out: Path) -> tuple[Tensor, dict[str, bytes]]:
    quantize(source, out)
    (out / "tokenizer.model").unlink(missing_ok=True)  # it is no real one
    shards = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    return mixq.load(out).forward(IDS), shards


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_gives_the_same_logits(write: Write, tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "reference")
    raw = json.loads((tmp_path / "reference" / "config.json").read_text())
    expected = logits_and_shards(open_source(tmp_path / "reference"), tmp_path / "expected")
    source = open_source(write(tmp_path / "form", tensors, raw), allow_pickle=True)
    found = logits_and_shards(source, tmp_path / "out")
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_a_hub_gives_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(tmp_path / "reference", shards=3)
    expected = logits_and_shards(open_source(tmp_path / "reference"), tmp_path / "expected")
    with FakeHub({"some-one/tiny": folder_contents(tmp_path / "reference")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        found = logits_and_shards(open_place(Hub("some-one/tiny")), tmp_path / "out")
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
