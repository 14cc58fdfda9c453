"""The demo model on the accelerator: its logits and its texts beside the CPU's, and the memory that was budget.

Contract: every miss mode and cache policy with several numbers of slots gives the CPU's logits within LIMIT (relative
L2), also with a prompt, one token at a time and three sequences at once; greedy texts agree, or part where the CPU's
own first two choices are closer together than the devices are.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixq
from mixq.config import CACHE_POLICIES, MISS_MODES, parse_size
from mixq.experts.accelerators.cuda import DRIVER_BYTES
from mixq.model.attention import Chunk
from mixq.quantize import quantize
from mixq.system import paths
from tests.bench.gpu_section import Session

LIMIT = 1e-3
CONTEXT = 128
PROMPT = [1, *range(300, 345)]
NEXT = [473, 7, 1010, 33, 1100, 500, 8, 300, 12, 1444]
TEXTS = ("The capital of France is", "Count: 1 2 3", "Hello, who are you?")


def run(session: Session) -> None:
    """Compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mixq-demo-") as name:
        nl4 = Path(name) / "nl4"
        begun = time.perf_counter()
        quantize(paths.demo_source(), nl4)
        session.say(f"the demo model was quantized in {time.perf_counter() - begun:.1f} s")
        cpu = mixq.load(nl4, device="cpu", context=CONTEXT, threads=1)
        expected = logits(cpu)
        session.found["logits"] = []
        policies = CACHE_POLICIES[:2] if session.quick else CACHE_POLICIES
        order = sorted(itertools.product(MISS_MODES, policies), key=lambda pair: policies.index(pair[1]))
        for miss, policy in order:
            if session.over(5):
                session.found["logits"].append({"miss": miss, "policy": policy, "left_out": True})
                continue
            with session.trying(f"logits, {miss}, {policy}"):
                _logits(session, nl4, expected, miss=miss, cache_policy=policy)
        with session.trying("bfloat16 and an int8 KV cache"):
            for options in ({"kv": "int8"}, {"folder": "bf16"}):
                folder = paths.demo_source() if options.pop("folder", None) else nl4
                host = mixq.load(folder, device="cpu", context=CONTEXT, threads=1, **options)
                _logits(session, folder, logits(host), miss="auto", **options)
        with session.trying("texts"):
            _texts(session, nl4, cpu)
        with session.trying("promises"):
            _promises(session, nl4, expected)


def logits(model: mixq.Model) -> Tensor:
    """Return the logits of a prompt, of tokens one by one, and of three sequences at once."""
    caches = [model.new_kv_cache() for _ in range(3)]
    rows = [model.forward(PROMPT, kv_cache=caches[0])]
    rows += [model.forward([token], kv_cache=caches[0]) for token in NEXT]
    for cache, start in zip(caches[1:], (50, 70), strict=True):
        model.forward(list(range(start, start + 9)), kv_cache=cache)
    chunks = [Chunk(torch.tensor([token]), cache) for token, cache in zip((9, 77, 777), caches, strict=True)]
    rows.append(model.network.forward(chunks))
    return torch.cat(rows)


def load(session: Session, folder: Path, **options: Any) -> mixq.Model:
    vram = options.pop("vram", "2GB" if session.cuda else "200MB")
    return mixq.load(folder, device=session.device, vram=vram, context=CONTEXT, threads=1, seed=1, **options)


def close(model: mixq.Model) -> None:
    """End a model's threads and free its memory."""
    model.close()
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _logits(session: Session, folder: Path, expected: Tensor, **options: Any) -> None:
    model = load(session, folder, **options)
    offload = model.placement.offload
    assert offload is not None
    for slots in (0, 3) if session.quick else (0, 1, 4, 8):
        offload.resize([slots] * offload.store.layers)
        before = offload.telemetry.snapshot()
        answer = logits(model)
        offload.quiesce()
        counters = offload.telemetry.snapshot().since(before)
        error = float((answer - expected).norm() / expected.norm())
        found = {
            **options,
            "slots_a_layer": slots,
            "relative_l2": error,
            "worst_row": float(((answer - expected).norm(dim=1) / expected.norm(dim=1)).max()),
            "same_bits": torch.equal(answer, expected),
            "hit_rate": counters.hit_rate,
            "right": error <= LIMIT,
        }
        session.found["logits"].append(found)
        if not found["right"]:
            session.found["errors"].append(f"logits: {found}")
    close(model)


def _texts(session: Session, folder: Path, cpu: mixq.Model) -> None:
    session.found["texts"] = []
    model = load(session, folder, miss="auto")
    for text in TEXTS[:1] if session.quick else TEXTS:
        here, there = (m.generate(text, stream=False, temperature=0, max_tokens=40) for m in (cpu, model))
        assert not hasattr(here, "__next__")
        found: dict[str, Any] = {"prompt": text, "answer": here.text, "same": here.token_ids == there.token_ids}
        if not found["same"]:
            pairs = zip(here.token_ids, there.token_ids, strict=False)
            agreed = next((i for i, (a, b) in enumerate(pairs) if a != b), len(there.token_ids))
            ids = [cpu.tokenizer.bos_id, *cpu.tokenizer.encode(text), *here.token_ids[:agreed]]
            best = cpu.forward(ids)[-1].topk(2).values
            off = (model.forward(ids)[-1] - cpu.forward(ids)[-1]).abs().max()
            found |= {"tokens_agreed": agreed, "gap": float(best[0] - best[1]), "largest_difference": float(off)}
            found["same"] = found["gap"] <= 2 * found["largest_difference"]
            if not found["same"]:
                session.found["errors"].append(f"texts: {found}")
        session.found["texts"].append(found)
    close(model)


def _promises(session: Session, folder: Path, expected: Tensor) -> None:
    session.found["promises"] = []
    sizes = ("700MB", "1GB", "3GB") if session.cuda else ("12MB", "40MB")
    for vram in sizes:
        if session.cuda:
            torch.cuda.reset_peak_memory_stats()
        model = load(session, folder, vram=vram)
        error = float((logits(model) - expected).norm() / expected.norm())
        found = {"promised_bytes": parse_size(vram), "relative_l2": error, "right": error <= LIMIT}
        found |= {"slots": model.placement.as_dict()["expert_slots"], **memory_of(session, model.placement.as_dict())}
        session.found["promises"].append(found)
        if not found["right"] or found["account_peak_bytes"] > found["promised_bytes"]:
            session.found["errors"].append(f"promises: {found}")
        close(model)


def memory_of(session: Session, placed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the peak by the account and by torch, and what the driver says that is used beyond what was before."""
    found: dict[str, Any] = {"account_peak_bytes": placed["vram_peak_bytes"]}
    if session.cuda:
        free, total = torch.cuda.mem_get_info()
        before = session.machine.get("gpu_memory_used_before_bytes")
        found["torch_peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        found["torch_peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["driver_counted_on_bytes"] = DRIVER_BYTES
        if before is not None:
            found["driver_used_bytes"] = total - free - before
            found["driver_besides_torch_bytes"] = found["driver_used_bytes"] - torch.cuda.memory_reserved()
    return found
