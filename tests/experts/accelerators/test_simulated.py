"""The simulated accelerator: memory apart, promises kept, two queues that do not wait for each other."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from mixq.experts.accelerators.interface import OutOfMemory
from mixq.experts.accelerators.simulated import Queue, SimulatedAccelerator
from mixq.experts.accelerators.trunk import Trunk, trunk_bytes
from mixq.measure.speed.synthetic import SyntheticWeights

TINY = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def test_memory_beyond_the_promise_is_refused_and_counted() -> None:
    sim = SimulatedAccelerator(1000)
    first = sim.allocate(600)
    with pytest.raises(OutOfMemory) as caught:
        sim.allocate(401)
    assert (caught.value.asked, caught.value.free) == (401, 400)
    sim.release(first)
    sim.allocate(1000)
    assert (sim.memory.taken, sim.memory.peak) == (1000, 1000)
    sim.close()


def test_released_memory_is_spoilt() -> None:
    sim = SimulatedAccelerator(64)
    memory = sim.allocate(64)
    memory.zero_()
    values = memory.view(torch.float32)
    sim.release(memory)
    assert values.isnan().all()
    sim.close()


def test_another_program_that_takes_memory_is_noticed_by_the_next_work() -> None:
    sim = SimulatedAccelerator(1000)
    sim.allocate(900)
    sim.take_away(200)
    with pytest.raises(OutOfMemory) as caught:
        sim.to_device(torch.ones(1))
    assert caught.value.asked - caught.value.free == 100
    sim.close()


def test_copies_go_on_while_work_is_done_and_take_the_time_that_the_link_needs() -> None:
    """The work waits for the copy: with one queue for both it would wait for ever."""
    sim = SimulatedAccelerator(1 << 22, bandwidth=100e6, latency=0.001)
    target, source = sim.allocate(1 << 20), torch.arange(1 << 18, dtype=torch.int32).view(torch.uint8)
    begun = time.perf_counter()
    copied: list[bool] = []

    def work(_: object) -> torch.Tensor:
        event.wait()
        copied.append(bool(torch.equal(target, source)))
        return target

    event = sim.upload(target, source)
    launch = sim.launch(work)
    launch.wait()
    assert copied == [True]
    assert time.perf_counter() - begun >= (1 << 20) / 100e6
    begin, end = launch.busy
    assert begun <= begin <= end
    sim.close()


def test_reading_while_a_copy_is_under_way_gives_wrong_numbers() -> None:
    """What makes the engine's tests able to fail: nobody orders a copy against work but the caller."""
    sim = SimulatedAccelerator(16 << 20, bandwidth=10e6)
    target = sim.allocate(4 << 20)
    target.zero_()
    event = sim.upload(target, torch.ones(4 << 20, dtype=torch.uint8))
    too_early = sim.launch(lambda _: target.clone()).result()
    event.wait()
    assert not torch.equal(too_early, target)
    sim.close()


def test_an_error_is_raised_where_somebody_waits() -> None:
    queue = Queue("test")

    def fail() -> None:
        raise ValueError("broken")

    task = queue.give(fail)
    with pytest.raises(ValueError, match="broken"):
        task.wait()
    assert queue.give(lambda: None).wait() is None, "the thread lives on"
    queue.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        queue.give(fail)


def test_threads_end_with_the_accelerator() -> None:
    before = set(threading.enumerate())
    sim = SimulatedAccelerator(1000)
    sim.synchronize()
    own = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("mixq-sim")]
    assert len(own) == 2
    alive = weakref.ref(sim)
    del sim
    gc.collect()
    assert alive() is None
    for thread in own:
        thread.join(timeout=120)
        assert not thread.is_alive()


@pytest.mark.parametrize("tied", [False, True])
def test_the_trunk_is_copied_and_counted_and_the_embedding_stays(tied: bool) -> None:
    folder = SyntheticWeights.make(TINY | {"tie_word_embeddings": tied}, seed=3)
    sim = SimulatedAccelerator(trunk_bytes(folder))
    trunk = Trunk(folder, sim)
    name = "model.layers.1.self_attn.q_proj"
    copy, original = trunk.linear(name), folder.linear(name)
    assert not isinstance(copy, torch.Tensor)
    assert not isinstance(original, torch.Tensor)
    assert trunk.linear(name) is copy, "copied once"
    for suffix, tensor in original.tensors.items():
        assert torch.equal(copy.tensors[suffix], tensor)
        assert copy.tensors[suffix].data_ptr() != tensor.data_ptr()
    embedding = trunk.tensor("model.embed_tokens.weight")
    assert embedding.data_ptr() == folder.tensor("model.embed_tokens.weight").data_ptr()
    if tied:
        head = trunk.linear("model.embed_tokens")
        assert isinstance(head, torch.Tensor)
        assert head.data_ptr() != embedding.data_ptr()
        assert torch.equal(head, embedding)
    sim.close()


def test_the_process_ends_cleanly_in_the_middle_of_copies(tmp_path: Path) -> None:
    """A thread that the interpreter kills inside a copy takes the process down with SIGABRT."""
    program = """
import torch
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.experts.store import Piece
from mixq.experts.transfer import Uploader
sim = SimulatedAccelerator(1 << 30, bandwidth=2e9)
uploader = Uploader(sim)
for i in range(20):
    piece = Piece(0, torch.ones(8 << 20, dtype=torch.uint8))
    uploader.start((0, i), i, sim.allocate(8 << 20), [piece], demanded=False)
"""
    for _ in range(3):
        outcome = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=False, text=True, cwd=tmp_path
        )
        assert (outcome.returncode, outcome.stderr) == (0, "")
