"""Weights in huge pages: the same bytes, within the memory that there is, and mapped where anything is refused."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import mixq
from mixq.config import format_size
from mixq.engine import host_weights, loading
from mixq.engine.host_weights import Caches, into_huge_pages
from mixq.errors import DoesNotFitError, StorageError
from mixq.formats import copied, mapped
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard
from mixq.formats.packed import PackedLinear
from mixq.measure.speed.write_folder import FolderJob
from mixq.models.presets import PRESETS
from mixq.system import huge_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are advised on Linux alone")

SIZES = PRESETS["mixtral-8x7b"] | {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
"""Three shards of 3.6 MB, one for each layer, and a small one."""

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "made"
    FolderJob(path, SIZES).run()
    return path


@dataclass
class System:
    """What the system grants: the shares of mapped files (by name, else `files`) and of memory in huge pages."""

    files: float = 0.0
    memory: float = 1.0
    by_name: dict[str, float] = field(default_factory=dict)
    shards: dict[int, str] = field(default_factory=dict)

    def share(self, address: int, nbytes: int) -> float:
        if address in self.shards:
            return self.by_name.get(self.shards[address], self.files)
        return self.memory


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    """No model is small, and the system grants what a test says."""
    granted = System()
    opened = MappedShard.__init__

    def noted(self: MappedShard, path: Path) -> None:
        opened(self, path)
        granted.shards[self.address] = path.name

    monkeypatch.setattr(MappedShard, "__init__", noted)
    monkeypatch.setattr(huge_pages, "share_in_huge_pages", granted.share)
    monkeypatch.setattr(huge_pages, "are_off", lambda: False)
    for module, name in ((loading, "SMALL"), (host_weights, "LEAST")):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(host_weights, "PIECE", 1 << 20)
    monkeypatch.setattr(host_weights, "PART", 300_000)  # no multiple of a page
    return granted


def tensors_of(folder: ModelFolder) -> dict[str, torch.Tensor]:
    found = {}
    for parameter in parameters(folder.config):
        weight = folder.linear(parameter.module) if parameter.quantizable else folder.tensor(parameter.name)
        parts = weight.tensors if isinstance(weight, PackedLinear) else {"": weight}
        found |= {f"{parameter.name} {suffix}": tensor for suffix, tensor in parts.items()}
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_a_copy_has_the_same_bytes_in_other_memory(made: Path, system: System) -> None:
    before = ModelFolder.open(made)
    host = into_huge_pages(before, threads=3)
    assert (host.mapped, host.reason, str(host)) == (0, None, "copied into huge pages")
    assert host.copied == sum(path.stat().st_size for path in made.glob("*.safetensors"))
    assert host.folder.mapped == ()
    assert host.folder.nbytes == before.nbytes
    ours, theirs = tensors_of(host.folder), tensors_of(before)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]), name
        assert tensor.dtype == theirs[name].dtype
        assert tensor.data_ptr() != theirs[name].data_ptr()
        assert tensor.data_ptr() % 64 == theirs[name].data_ptr() % 64


def test_answers_are_bit_equal_wherever_the_weights_are(made: Path, system: System) -> None:
    model = mixq.load(made, device="cpu")
    logits = model.forward(IDS)
    assert model.placement.as_dict()["weights_copied_huge_bytes"] > model.folder.nbytes
    assert "copied into huge pages" in model._repr_html_()
    system.files = 1.0
    model = mixq.load(made, device="cpu")
    assert model.placement.as_dict()["weights_mapped_huge_bytes"] > model.folder.nbytes
    assert "mapped in huge pages" in model._repr_html_()
    assert model.forward(IDS).equal(logits)
    system.files = system.memory = 0.0
    model = mixq.load(made, device="cpu")
    assert "mapped in pages of 4 KiB" in model._repr_html_()
    assert model.forward(IDS).equal(logits)


def test_a_file_in_huge_pages_is_not_copied(made: Path, system: System) -> None:
    first, *_, last = names(made)
    system.by_name = {first: 0.95, last: 0.95}
    host = into_huge_pages(ModelFolder.open(made))
    assert {shard.path.name for shard in host.folder.mapped} == {first, last}
    assert host.mapped + host.copied == sum(path.stat().st_size for path in made.glob("*.safetensors"))
    assert str(host).endswith("MB copied into huge pages")
    assert "MB mapped in huge pages, " in str(host)


def test_small_models_and_small_shards_stay_as_they_are(
    made: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_weights, "LEAST", 1 << 20)
    host = into_huge_pages(ModelFolder.open(made))
    assert [shard.path.name for shard in host.folder.mapped] == names(made)[-1:]
    assert host.reason is None
    monkeypatch.setattr(loading, "SMALL", 1 << 30)
    monkeypatch.setattr(loading, "into_huge_pages", None)
    model = mixq.load(made, device="cpu")
    assert "mapped from the disk, read as they are used" in model._repr_html_()
    assert model.notes == ()


# The memory that it takes


class Machine:
    """A simulated machine that copies files: counts what is used."""

    def __init__(self, free: int) -> None:
        self.left = self.least = free
        self.given_back: list[tuple[int, int]] = []

    def advise_away(self, start: int, end: int) -> int:
        self.left += end - start
        self.given_back.append((start, end))
        return end - start

    def read(self, nbytes: int) -> None:
        self.left -= 2 * nbytes  # in the page cache and in the copy
        self.least = min(self.least, self.left)


@pytest.mark.parametrize("free", [100, 104, 110, 150, 199, 200, 1000])
def test_a_copy_takes_the_model_and_about_a_piece(free: int) -> None:
    caches, machine = Caches(), Machine(free)
    model, piece = 98, 2
    for start in range(0, model, piece):
        caches.give_back(piece, lambda: machine.left)
        machine.read(piece)
        caches.add(machine, start, start + piece)  # type: ignore[arg-type]
    assert machine.least >= min(free, model + piece) - model - piece, "no file of another program is evicted"
    assert machine.given_back == [(start, start + piece) for start in range(0, len(machine.given_back) * piece, piece)]
    kept = model - len(machine.given_back) * piece
    assert kept == max(0, min(model, (free - model) // piece * piece)), "no more is given back than is needed"


def test_nothing_is_given_back_if_free_memory_is_not_known() -> None:
    caches, machine = Caches(), Machine(0)
    caches.add(machine, 0, 5)  # type: ignore[arg-type]
    caches.give_back(5, lambda: None)
    assert machine.given_back == []


@pytest.mark.parametrize(("free", "kept"), [(0, False), (1 << 40, True)])
def test_the_page_cache_keeps_files_while_memory_is_free(
    made: Path, system: System, monkeypatch: pytest.MonkeyPatch, free: int, kept: bool
) -> None:
    for path in made.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet cannot be given back
    monkeypatch.setattr(host_weights, "free_memory", lambda: free)
    folder = ModelFolder.open(made)
    first = folder.mapped[0]
    into_huge_pages(folder)
    size = first.header.file_size
    assert (first.resident(0, size) > size // 2) == kept


def needed(made: Path) -> float:
    """Bytes that a copy of the model needs."""
    return mixq.load(made, device="cpu").placement.planned()["ram_planned_bytes"]


@pytest.mark.parametrize(
    ("share", "said", "copies"),
    [(1 / 0.89, None, True), (1 / 0.91, "are needed for huge pages", False), (1 / 0.96, "are needed for", False)],
)
def test_too_little_memory_leaves_files_mapped(
    made: Path, system: System, monkeypatch: pytest.MonkeyPatch, share: float, said: str | None, copies: bool
) -> None:
    free = int(needed(made) * share)
    monkeypatch.setattr(loading, "available_memory", lambda: free)
    model = mixq.load(made, device="cpu")
    assert (model.placement.as_dict()["weights_copied_huge_bytes"] > 0) == copies
    if said is None:
        assert model.notes == ()
    else:
        assert said in model.notes[0]
        assert model.notes[0].startswith("Decoding is slower, with weights in pages of 4 KiB: ")
    system.files = 1.0
    model = mixq.load(made, device="cpu")
    reads = share > 1 / 0.95  # mapped files, which the system can take back, may fill all but the margin
    assert (model.placement.as_dict()["weights_mapped_huge_bytes"] > 0) == reads


def test_ram_limits_the_copy_as_everything(made: Path, system: System) -> None:
    planned = int(needed(made))
    model = mixq.load(made, device="cpu", ram=planned)
    assert model.placement.tier is None
    assert "copied into huge pages" in model._repr_html_()
    model = mixq.load(made, device="cpu", ram=planned - 2_000_000)
    assert model.placement.tier is not None
    assert model.placement.host is None
    assert "mapped from the disk" in model._repr_html_()
    assert model.forward(IDS).equal(mixq.load(made, device="cpu").forward(IDS))
    model.close()


# What is refused


def test_a_kernel_that_takes_no_advice(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_call", lambda *_: 22)  # EINVAL
    host = into_huge_pages(ModelFolder.open(made))
    assert str(host) == "copied into huge pages"
    assert all(
        tensor.equal(tensors_of(host.folder)[name]) for name, tensor in tensors_of(ModelFolder.open(made)).items()
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(huge_pages, "are_off", lambda: True), "transparent huge pages are off"),
        (lambda patch: patch.setattr(huge_pages, "allocate", _refuse), "3.6 MB of memory could not be allocated"),
        (lambda patch: patch.setattr(huge_pages, "share_in_huge_pages", lambda *_: 0.3), "has no huge pages left"),
    ],
)
def test_memory_that_is_refused_leaves_files_mapped(
    made: Path,
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    change(monkeypatch)
    model = mixq.load(made, device="cpu")
    assert reason in model.notes[0]
    assert model.placement.as_dict()["weights_copied_huge_bytes"] == 0
    assert model.forward(IDS).isfinite().all()


def _refuse(nbytes: int) -> torch.Tensor:
    raise DoesNotFitError(f"{format_size(nbytes)} of memory could not be allocated.")


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mixq loading")]


def test_an_interrupt_ends_loading(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, calls = copied.copy_part, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGINT)
        copy(*arguments)

    monkeypatch.setattr(host_weights, "copy_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mixq.load(made, device="cpu")
    assert reading() == []
    assert calls < 20, "parts that no thread had begun are not read"
    assert mixq.load(made, device="cpu").forward(IDS).isfinite().all()
    assert reading() == []


def test_a_disk_that_fails_is_an_error(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match=r"safetensors cannot be read: Input/output error"):
        mixq.load(made, device="cpu")
    assert reading() == []
    system.files = 1.0
    monkeypatch.setattr(MappedShard, "read_in", fail)
    with pytest.raises(StorageError, match=r"safetensors cannot be read: Input/output error"):
        mixq.load(made, device="cpu")


def test_a_file_that_becomes_shorter_is_an_error(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(StorageError, match="has become shorter while it was read"):
        mixq.load(made, device="cpu")


def test_loading_says_how_far_it_is(made: Path, system: System) -> None:
    told: list[tuple[str, float]] = []
    mixq.load(made, device="cpu", progress=lambda what, share: told.append((what, share)))
    shares = [share for what, share in told if what == "weights"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) >= 12
    assert told[-1] == ("", 1.0)
