"""Experts as they lie in host memory, and as they stand in a slot."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixq.experts.store import ExpertStore
from mixq.formats.folder import ModelFolder
from mixq.kernels.reference import Weight
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny"
    write_tiny_mixtral(path, ffn=256, layers=2)
    return path


def store_of(source: Path, target: Path, format: str) -> ExpertStore:
    if format == "bf16":
        return ExpertStore(ModelFolder.open(source))
    quantize(source, target, format=format)
    return ExpertStore(ModelFolder.open(target))


def dense(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.dequantize()


def fill(store: ExpertStore, layer: int, expert: int) -> Tensor:
    memory = torch.full((store.slot_bytes,), 0xFF, dtype=torch.uint8)
    for piece in store.pieces(layer, expert):
        memory[piece.offset : piece.offset + len(piece.source)] = piece.source
    return memory


@pytest.mark.parametrize("format", ["bf16", "nl4", "w4", "w8"])
def test_a_slot_holds_the_expert_byte_for_byte(source: Path, tmp_path: Path, format: str) -> None:
    store = store_of(source, tmp_path / "out", format)
    assert store.reason is None
    for layer, expert in ((0, 0), (1, 3)):
        memory = fill(store, layer, expert)
        inside = store.view(layer, memory)
        for copy, original in zip(inside, store.layer(layer)[expert], strict=True):
            assert torch.equal(dense(copy), dense(original))
        first = inside[0] if isinstance(inside[0], Tensor) else next(iter(inside[0].tensors.values()))
        start = memory.data_ptr()
        assert start <= first.data_ptr() < start + len(memory), "a view of the slot, not a copy"


def test_an_upload_from_a_shard_of_our_own_is_three_copies(source: Path, tmp_path: Path) -> None:
    """Codes, scales and row scales of the three matrices lie side by side (mixq/README.md)."""
    store = store_of(source, tmp_path / "out", "nl4")
    assert [len(list(store.pieces(layer, expert))) for layer in range(2) for expert in range(4)] == [3] * 8
    total = sum(len(piece.source) for piece in store.pieces(1, 2))
    assert total == store.expert_bytes(1) == store.slot_bytes


def test_nf4_experts_have_no_slots(source: Path, tmp_path: Path) -> None:
    assert "nf4" in str(store_of(source, tmp_path / "out", "nf4").reason)


def test_a_piece_keeps_its_expert_alive(source: Path, tmp_path: Path) -> None:
    """A background copy may still run when the model has gone: its memory must not be unmapped."""
    pieces = list(store_of(source, tmp_path / "out", "nl4").pieces(0, 1))
    gc.collect()
    again = list(ExpertStore(ModelFolder.open(tmp_path / "out")).pieces(0, 1))
    assert all(torch.equal(a.source, b.source) for a, b in zip(pieces, again, strict=True))


def test_experts_move_into_registered_memory_up_to_the_limit_or_the_first_refusal(source: Path, tmp_path: Path) -> None:
    store = store_of(source, tmp_path / "out", "nl4")
    before = [[dense(weight) for weight in expert] for layer in range(2) for expert in store.layer(layer)]
    each = store.expert_bytes(0) * 4
    known: list[Tensor] = []

    def register(memory: Tensor) -> bool:
        known.append(memory)
        return len(known) < 2

    assert store.move_to_registered(register, each - 1) == 0
    assert not known
    assert store.move_to_registered(register, 10 * each) == each, "the second was refused"
    start = known[0].data_ptr()
    for layer, inside in ((0, True), (1, False)):
        for expert in range(4):
            pieces = list(store.pieces(layer, expert))
            assert all((start <= p.source.data_ptr() < start + each) == inside for p in pieces)
    assert len(list(store.pieces(0, 1))) == 1, "one copy: nothing lies between the tensors"
    after = [[dense(weight) for weight in expert] for layer in range(2) for expert in store.layer(layer)]
    assert all(torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
