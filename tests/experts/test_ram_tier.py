"""The RAM tier: reads what is asked for, gives back what must go, waits for nobody, and changes no answer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mixq
from mixq.experts import ram_tier
from mixq.experts.ram_tier import RamTier
from mixq.experts.spans import expert_spans
from mixq.formats import mapped
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.write_folder import FolderJob
from tests.checkpoints import SMALL_MIXTRAL

linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are advised on Linux alone")
pytestmark = linux


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ram") / "made"
    FolderJob(path, SMALL_MIXTRAL).run()
    return path


@pytest.fixture
def folder(made: Path) -> ModelFolder:
    """An open folder of which nothing is in memory."""
    folder = ModelFolder.open(made)
    forget(folder)
    return folder


def forget(folder: ModelFolder) -> None:
    for shard in folder.mapped:
        shard.advise_away(0, shard.header.file_size)


def there(folder: ModelFolder, layer: int, expert: int) -> float:
    spans = expert_spans(folder)[layer][expert]
    return sum(s.shard.resident(s.start, s.end) for s in spans) / sum(s.nbytes for s in spans)


def budget_for(folder: ModelFolder, experts: float) -> int:
    """Return a budget with room for so many experts."""
    spans = expert_spans(folder)
    each = sum(span.nbytes for span in spans[0][0])
    return folder.nbytes - 24 * each + int(experts * each)


@pytest.fixture
def tier(folder: ModelFolder) -> Iterator[RamTier]:
    """Room for six of 24 experts."""
    tier = RamTier.open(folder, budget_for(folder, 6.5))
    assert tier is not None
    yield tier
    tier.close()


def test_spans_are_the_experts_bytes_neighbours_joined(folder: ModelFolder) -> None:
    for layer, experts in enumerate(expert_spans(folder)):
        for expert, spans in enumerate(experts):
            assert len(spans) == 3  # codes, scales and row scales: three matrices lie side by side in each
            tensors = {
                f"{matrix}.{suffix}": tensor
                for matrix in ("w1", "w2", "w3")
                for suffix, tensor in folder.linear(
                    f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}"
                ).tensors.items()  # type: ignore[union-attr]
            }
            assert sum(span.nbytes for span in spans) == sum(tensor.nbytes for tensor in tensors.values())
            for tensor in tensors.values():
                start = tensor.data_ptr() - spans[0].shard.address
                assert any(span.start <= start and start + tensor.nbytes <= span.end for span in spans)


@pytest.mark.parametrize("stream", [0, 1 << 60], ids=["device reads far ahead", "device does not"])
def test_what_is_used_is_read(folder: ModelFolder, tier: RamTier, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_tier, "STREAM", stream)
    assert there(folder, 0, 2) < 0.2
    tier.use(0, [2, 5])
    tier.drain()
    assert there(folder, 0, 2) == there(folder, 0, 5) == pytest.approx(1, abs=0.1)
    assert there(folder, 0, 6) < 0.2 or there(folder, 0, 7) < 0.2  # not the whole file
    assert (tier.counters.requests, tier.counters.hits) == (2, 0)
    assert tier.counters.bytes_demanded == 2 * sum(span.nbytes for span in expert_spans(folder)[0][2])
    assert tier.counters.bytes_ahead == 0


def test_what_is_expected_is_read_ahead_and_hit(folder: ModelFolder, tier: RamTier) -> None:
    tier.expect(1, [3, 4])
    tier.drain()
    assert there(folder, 1, 3) > 0.9
    tier.use(1, [3, 6])
    tier.drain()
    assert (tier.counters.requests, tier.counters.hits) == (2, 1)
    assert tier.counters.bytes_ahead > tier.counters.bytes_demanded > 0


def test_the_least_used_leave_and_memory_is_bounded(folder: ModelFolder, tier: RamTier) -> None:
    for _ in range(2):
        for layer in range(3):
            tier.use(layer, [0, 1])
            tier.drain()
    for layer in range(3):
        tier.use(layer, [6, 7])
        tier.drain()
        assert there(folder, layer, 6) > 0.9
    assert tier.counters.bytes_advised_away > 0
    share = sum(there(folder, layer, expert) for layer in range(3) for expert in range(8))
    assert share < 6.5 + 24 * 0.05  # at the edges neighbours share a page
    tier.use(0, [6, 7])
    assert tier.counters.hits >= 6 + 2


def test_what_is_not_expected_any_more_is_not_read(
    folder: ModelFolder, tier: RamTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer has come and chosen otherwise: reading what it was thought to choose would cost time for nothing."""
    go = threading.Event()
    whole = MappedShard.read_in

    def slow(self: MappedShard, start: int, end: int) -> None:
        assert go.wait(10)
        whole(self, start, end)

    monkeypatch.setattr(MappedShard, "read_in", slow)
    tier.expect(1, [1, 2, 3])
    tier.use(1, [5])  # returns although nothing is read yet
    go.set()
    tier.drain()
    read = [expert for expert in range(8) if there(folder, 1, expert) > 0.9]
    assert 5 in read
    assert not {2, 3} & set(read)


def test_a_choice_goes_before_what_is_expected(
    folder: ModelFolder, tier: RamTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ram_tier, "CHUNK", 1 << 16)
    order: list[int] = []
    started, go = threading.Event(), threading.Event()
    whole = MappedShard.read_in

    def noted(self: MappedShard, start: int, end: int) -> None:
        spans = expert_spans(folder)[2]
        order.append(next(e for e in range(8) if any(s.start <= start < s.end for s in spans[e])))
        started.set()
        assert go.wait(10)
        whole(self, start, end)

    monkeypatch.setattr(MappedShard, "read_in", noted)
    tier.expect(2, [1])
    assert started.wait(10)
    tier.use(2, [4, 1])
    tier.expect(2, [6])
    go.set()
    tier.drain()
    changes = [b for a, b in zip([-1, *order], order, strict=False) if a != b]
    assert changes == [1, 4, 1, 6]  # after the chunk that was being read: the choice in its order
    assert tier.counters.late == 1


def test_pages_that_the_system_took_are_read_again(folder: ModelFolder, tier: RamTier) -> None:
    tier.use(0, [2])
    tier.drain()
    forget(folder)
    tier.use(0, [2])
    tier.drain()
    assert there(folder, 0, 2) > 0.9
    assert (tier.counters.requests, tier.counters.hits, tier.counters.taken_away) == (2, 0, 1)


def test_waiting_is_for_what_was_missing(folder: ModelFolder, tier: RamTier, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    whole = MappedShard.read_in

    def slow(self: MappedShard, start: int, end: int) -> None:
        assert go.wait(10)
        whole(self, start, end)

    monkeypatch.setattr(MappedShard, "read_in", slow)
    tier.use(0, [2, 3])
    threading.Timer(0.05, go.set).start()
    tier.wait()
    assert go.is_set()
    assert there(folder, 0, 2) > 0.9
    assert there(folder, 0, 3) > 0.9
    go.clear()
    tier.expect(1, [1])
    tier.use(0, [2])  # is there: nothing to wait for, although something is being read
    tier.wait()
    go.set()


def test_what_is_in_memory_from_before_is_known(folder: ModelFolder) -> None:
    for span in [span for expert in range(8) for span in expert_spans(folder)[1][expert]]:
        span.shard.read_in(span.start, span.end)
    tier = RamTier.open(folder, budget_for(folder, 5.5))
    assert tier is not None
    known = [expert for expert in range(8) if there(folder, 1, expert) > 0.9]
    assert len(known) == 5
    tier.use(1, known[:2])
    tier.close()
    assert tier.counters.hits == 2


def test_answers_are_the_same_while_pages_come_and_go(made: Path) -> None:
    model = mixq.load(made, threads=1)
    ids = list(range(1, 30))
    expected = model.forward(ids)
    tier = RamTier.open(model.folder, 1)  # two experts
    assert tier is not None
    stop = threading.Event()

    def churn() -> None:
        step = 0
        while not stop.is_set():
            tier.use(step % 3, [step % 8, (step + 3) % 8])
            tier.expect((step + 1) % 3, [(step + 5) % 8])
            tier.drain()
            step += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(torch.equal(model.forward(ids), expected) for _ in range(5))
    finally:
        stop.set()
        thread.join()
        tier.close()
    assert tier.counters.bytes_advised_away > 0


def test_a_disk_that_fails_ends_reading_ahead_and_nothing_else(tier: RamTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: MappedShard, start: int, end: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(MappedShard, "read_in", broken)
    tier.use(0, [1])
    tier.drain()
    assert tier.failure == "reading experts from the disk has stopped: Input/output error"
    tier.use(1, [1])
    tier.expect(2, [1])
    tier.drain()


def test_nothing_to_do_where_the_experts_fit(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RamTier.open(folder, folder.nbytes) is None
    assert "fit into memory" in (RamTier.why_not(folder, folder.nbytes) or "")
    assert RamTier.why_not(folder, budget_for(folder, 23)) is None
    monkeypatch.setattr(ram_tier, "available_memory", lambda: 2 * folder.nbytes)
    assert RamTier.open(folder) is None
    assert RamTier.why_not(folder, reserved=folder.nbytes) is None
    monkeypatch.setattr(ram_tier, "available_memory", lambda: None)
    assert RamTier.open(folder) is None


def test_an_accelerator_that_has_the_trunk_leaves_room(folder: ModelFolder) -> None:
    experts = sum(span.nbytes for layer in expert_spans(folder) for expert in layer for span in expert)
    assert RamTier.why_not(folder, experts) is None
    assert RamTier.open(folder, experts, trunk_in_ram=False) is None


def test_nothing_to_do_elsewhere(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RamTier.why_not(SyntheticWeights.make(SMALL_MIXTRAL), 1) == "the weights are in memory already"
    dense = {key: value for key, value in SMALL_MIXTRAL.items() if "experts" not in key} | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
    }
    assert RamTier.why_not(SyntheticWeights.make(dense), 1) == "the model has no experts"
    monkeypatch.setattr(mapped, "_libc", lambda: None)
    assert RamTier.open(folder, 1) is None
    assert "does not report which pages" in (RamTier.why_not(folder, 1) or "")


def test_it_says_how_much_fits(tier: RamTier) -> None:
    assert str(tier).startswith("RAM holds 6 of 24 experts")
