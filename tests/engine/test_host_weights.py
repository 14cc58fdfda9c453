"""Weights in huge pages: the same bytes, within the memory that there is, and mapped where anything is refused."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import mixq
from mixq.engine import host_weights, loading
from mixq.engine.host_weights import Caches, into_huge_pages
from mixq.errors import DoesNotFitError, StorageError
from mixq.formats import mapped
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import PAGE, MappedShard
from mixq.formats.packed import PackedLinear
from mixq.measure.speed.write_folder import FolderJob
from mixq.system import huge_block, huge_pages
from mixq.system.huge_block import HugeBlock, map_file
from tests.checkpoints import SMALL_MIXTRAL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are advised on Linux alone")


IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "made"
    FolderJob(path, SMALL_MIXTRAL).run()
    return path


@dataclass
class System:
    """What the system grants: which parts of mapped files (by name, else `files`) and of memory are in huge pages."""

    files: tuple[tuple[float, float], ...] = ()
    by_name: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    memory: tuple[tuple[float, float], ...] = ((0, 1),)
    shards: dict[tuple[int, int], str] = field(default_factory=dict)

    def ranges(self, address: int, nbytes: int) -> list[tuple[int, int]]:
        name = self.shards.get((address, nbytes))
        parts = self.memory if name is None else self.by_name.get(name, self.files)
        return [(address + _whole(first * nbytes), address + _whole(last * nbytes)) for first, last in parts]


def _whole(nbytes: float) -> int:
    return round(nbytes / PAGE) * PAGE


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    """No model is small, huge pages have 64 KiB, and the system grants what a test says."""
    granted = System()
    opened = MappedShard.__init__

    def noted(self: MappedShard, path: Path) -> None:
        opened(self, path)
        granted.shards[self.address, self.header.file_size] = path.name

    monkeypatch.setattr(MappedShard, "__init__", noted)
    monkeypatch.setattr(huge_pages, "ranges_in_huge_pages", granted.ranges)
    monkeypatch.setattr(huge_pages, "are_off", lambda: False)
    monkeypatch.setattr(loading, "SMALL", 0)
    for module in (host_weights, huge_block):
        monkeypatch.setattr(module, "HUGE_PAGE", 1 << 16)
    monkeypatch.setattr(host_weights, "PART", 1 << 18)
    monkeypatch.setattr(host_weights, "AT_ONCE", 4)
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


def test_a_copy_has_the_same_bytes_at_the_same_place(made: Path, system: System) -> None:
    folder, other = ModelFolder.open(made), ModelFolder.open(made)
    places = {name: tensor.data_ptr() for name, tensor in tensors_of(folder).items()}
    host = into_huge_pages(folder, threads=3)
    assert (host.mapped, host.reason, str(host)) == (0, None, "copied into huge pages")
    assert host.total == sum(path.stat().st_size for path in made.glob("*.safetensors"))
    assert host.total - 4 * 2 * (1 << 16) < host.copied <= host.total  # a huge page at each end of four shards
    theirs = tensors_of(other)
    for name, tensor in tensors_of(folder).items():
        assert tensor.equal(theirs[name]), name
        assert tensor.data_ptr() == places[name]
    first = folder.mapped[0]
    assert first.advise_away(0, first.header.file_size) > 0  # of the page cache alone
    assert all(tensor.equal(theirs[name]) for name, tensor in tensors_of(folder).items())


def test_answers_are_bit_equal_wherever_the_weights_are(made: Path, system: System) -> None:
    model = mixq.load(made, device="cpu")
    logits = model.forward(IDS)
    assert "copied into huge pages" in model._repr_html_()
    assert model.placement.as_dict()["weights_copied_huge_bytes"] > 0.9 * model.folder.nbytes
    system.files = ((0, 1),)
    model = mixq.load(made, device="cpu")
    assert ">mapped in huge pages" in model._repr_html_()
    assert model.placement.as_dict()["weights_mapped_huge_bytes"] > 0.9 * model.folder.nbytes
    assert model.placement.as_dict()["weights_copied_huge_bytes"] == 0
    assert model.forward(IDS).equal(logits)
    system.files = ((0.1, 0.3), (0.5, 0.9))
    model = mixq.load(made, device="cpu")
    assert "MB mapped in huge pages, " in model._repr_html_()
    assert "MB copied into huge pages<" in model._repr_html_()
    assert model.forward(IDS).equal(logits)


def test_what_is_in_huge_pages_is_not_copied(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = names(made)
    system.files = ((0, 1),)
    system.by_name = {first: ((0.25, 0.5), (0.75, 1)), second: ()}
    copied: dict[str, list[tuple[int, int]]] = {}
    copy = MappedShard.copy_in

    def noted(self: MappedShard, start: int, end: int) -> None:
        copied.setdefault(self.path.name, []).append((start, end))
        copy(self, start, end)

    monkeypatch.setattr(MappedShard, "copy_in", noted)
    folder = ModelFolder.open(made)
    host = into_huge_pages(folder)
    assert copied.keys() == {first, second}
    for shard in folder.mapped[:2]:
        huge = [
            (start - shard.address, end - shard.address)
            for start, end in system.ranges(shard.address, shard.header.file_size)
        ]
        parts = sorted(copied[shard.path.name])
        assert all((shard.address + start) % (1 << 16) == 0 for start, _ in parts)
        assert all(0 < end - start <= 1 << 18 for start, end in parts)
        assert all(end <= begin or last <= start for start, end in parts for begin, last in huge)
        rest = shard.header.file_size - sum(end - start for start, end in [*parts, *huge])
        assert 0 <= rest < (len(huge) + 1) * 2 * (1 << 16), "less than a huge page at each end of a gap is left"
    assert host.copied == sum(end - start for parts in copied.values() for start, end in parts)


def test_older_kernels_tell_the_share_alone(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "ranges_in_huge_pages", lambda *_: None)
    for share, said in ((0.95, "mapped in huge pages"), (0.85, "copied into huge pages")):
        monkeypatch.setattr(huge_pages, "share_in_huge_pages", lambda *_, share=share: share)
        assert str(into_huge_pages(ModelFolder.open(made))) == said


def test_small_models_stay_as_they_are(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def forget(self, start: int, end: int) -> int:
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
        caches.add(machine, (start, start + piece))  # type: ignore[arg-type]
    assert machine.least >= min(free, model + piece) - model - piece, "no file of another program is evicted"
    assert machine.given_back == [(start, start + piece) for start in range(0, len(machine.given_back) * piece, piece)]
    kept = model - len(machine.given_back) * piece
    assert kept == max(0, min(model, (free - model) // piece * piece)), "no more is given back than is needed"


def test_nothing_is_given_back_if_free_memory_is_not_known() -> None:
    caches, machine = Caches(), Machine(0)
    caches.add(machine, (0, 5))  # type: ignore[arg-type]
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
    into_huge_pages(ModelFolder.open(made))
    first = ModelFolder.open(made).mapped[0]
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
    system.files = ((0, 1),)
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
    folder = ModelFolder.open(made)
    assert str(into_huge_pages(folder)) == "copied into huge pages"
    theirs = tensors_of(ModelFolder.open(made))
    assert all(tensor.equal(theirs[name]) for name, tensor in tensors_of(folder).items())


def _refuse_memory(patch: pytest.MonkeyPatch) -> None:
    def refuse(nbytes: int) -> HugeBlock:
        raise DoesNotFitError("the system refused 262.1 kB of memory")

    patch.setattr(mapped, "HugeBlock", refuse)


def _refuse_to_move(patch: pytest.MonkeyPatch) -> None:
    def refuse(self: HugeBlock, address: int) -> None:
        map_file(address, self.nbytes, zeros.fileno(), 0)  # as a kernel that fails halfway: the old bytes are gone
        raise DoesNotFitError("the system refused 262.1 kB of memory")

    zeros = tempfile.TemporaryFile()  # noqa: SIM115
    zeros.write(bytes(1 << 20))
    zeros.flush()
    patch.setattr(HugeBlock, "move_to", refuse)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(huge_pages, "are_off", lambda: True), "transparent huge pages are off"),
        (lambda patch: patch.setattr(System, "memory", ((0, 0.4),)), "the system has no huge pages left"),
        (_refuse_memory, "refused 262.1 kB of memory"),
        (_refuse_to_move, "refused 262.1 kB of memory"),
    ],
)
def test_memory_that_is_refused_leaves_files_mapped(
    made: Path,
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    logits = mixq.load(made, device="cpu").forward(IDS)
    change(monkeypatch)
    system.memory = System.memory
    model = mixq.load(made, device="cpu")
    assert reason in model.notes[0]
    assert model.placement.as_dict()["weights_copied_huge_bytes"] == 0
    assert "mapped in pages of 4 KiB, read as they are used" in model._repr_html_()
    assert model.forward(IDS).equal(logits)


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mixq loading")]


def test_an_interrupt_ends_loading(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_weights, "PART", 1 << 16)
    monkeypatch.setattr(host_weights, "AT_ONCE", 1000)
    copy, calls = MappedShard.copy_in, 0

    def interrupted(self: MappedShard, start: int, end: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        if calls >= 5:
            time.sleep(0.01)  # longer than the main thread needs
        copy(self, start, end)

    monkeypatch.setattr(MappedShard, "copy_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mixq.load(made, device="cpu")
    assert reading() == []
    assert calls < 40, "of a shard's 50 parts, those that no thread had begun are not read"
    assert mixq.load(made, device="cpu").forward(IDS).isfinite().all()
    assert reading() == []


def test_a_disk_that_fails_is_an_error(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match=r"safetensors cannot be read: Input/output error"):
        mixq.load(made, device="cpu")
    assert reading() == []
    monkeypatch.setattr(MappedShard, "read_in", fail)
    with pytest.raises(StorageError, match=r"safetensors cannot be read: Input/output error"):
        mixq.load(made, device="cpu")


def test_a_file_that_becomes_shorter_is_an_error(made: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(StorageError, match="has become shorter while it was read"):
        mixq.load(made, device="cpu")


@pytest.mark.parametrize("files", [(), ((0, 1),), ((0.1, 0.3), (0.5, 0.9))])
def test_loading_says_how_far_it_is(made: Path, system: System, files: tuple[tuple[float, float], ...]) -> None:
    system.files = files
    told: list[tuple[str, float]] = []
    mixq.load(made, device="cpu", progress=lambda what, share: told.append((what, share)))
    shares = [share for what, share in told if what == "weights"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) >= 8
    assert told[-1] == ("", 1.0)
