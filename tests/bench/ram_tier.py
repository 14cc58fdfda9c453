"""Decode where memory is smaller than the experts: page faults alone, and with the RAM tier, against the disk's limit.

    python tests/bench/ram_tier.py FOLDER --lock 12GB

Contract: FOLDER is made (25 GB, `mixq bench --synthetic mixtral-8x7b --write`) where it is missing. A child holds
`--lock` bytes of memory; each side runs in a process of its own after the folder's pages have left the page cache. The
router is overridden: every expert of the last token is used again with probability 0.39 (Mixtral's measured habit), the
others are drawn evenly. What the predictor would say of the next layers is made up too, right with probability
`--recall`. The limit is the bytes that a token read from the disk over the disk's rate, measured by direct reads just
before. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from mixq.config import ModelConfig, RuntimeOptions, format_size, parse_size
from mixq.engine.model import Model
from mixq.experts.ram_tier import RamTier
from mixq.experts.routing import draw_trace, parse_routing
from mixq.measure.speed.write_folder import FolderJob
from mixq.model.attention import Chunk
from mixq.model.layer import SparseMoeBlock
from mixq.plan.recording import read_routing
from mixq.system.memory import total_memory
from tests.accept.tables import markdown, write

DIRECT_BLOCK = 4 << 20
HOLD = """
import ctypes, mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
locked = ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
if not locked:
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
print("locked" if locked else "touched", flush=True)
sys.stdin.read()
"""


class MadeUpRouting:
    """A routing that is drawn beforehand, so that a predictor can be made up for it."""

    def __init__(self, text: str, tokens: int, config: ModelConfig, seed: int) -> None:
        shape = {
            "layers": config.num_hidden_layers,
            "experts": config.num_local_experts,
            "active": config.num_experts_per_tok,
        }
        self._tokens = draw_trace(
            parse_routing(text, **shape, seed=seed, read_trace=read_routing), tokens, **shape
        ).tokens
        self._random = random.Random(seed)
        self._experts = config.num_local_experts
        self.token = -1

    def choose(self, layer: int) -> tuple[int, ...]:
        """Return the experts of this token."""
        self.token += layer == 0
        return self._tokens[self.token][layer]

    def guess(self, layer: int, recall: float) -> list[int]:
        """Return a layer's experts of this token, each of them right with probability `recall`."""
        return [
            expert if self._random.random() < recall else self._random.randrange(self._experts)
            for expert in self._tokens[self.token][layer]
        ]


class PredictingTier:
    """A layer's RAM tier with a synthetic prediction of the next layer's experts, which is read ahead as well.

    The engine makes no such predictions from the disk: this measures what they would gain.
    """

    def __init__(self, tier: RamTier, routing: MadeUpRouting, recall: float) -> None:
        self.layers = tier.layers
        self.expect, self.wait = tier.expect, tier.wait
        self._tier, self._routing, self._recall = tier, routing, recall

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """As `RamTier.use`; then the prediction for the next layer is read ahead."""
        self._tier.use(layer, experts)
        if self._recall > 0 and layer + 1 < self.layers:
            self._tier.expect(layer + 1, self._routing.guess(layer + 1, self._recall))


def main() -> None:
    """Run both sides, or one of them as a child."""
    parser = argparse.ArgumentParser(description="Decode with less memory than experts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", type=parse_size, default=parse_size("12GB"), help="memory to take away")
    parser.add_argument("--ram", type=parse_size, default=None, help="the tier's budget; default: what is free")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--warm", type=int, default=6, help="tokens before the measured ones")
    parser.add_argument(
        "--recall", type=float, nargs="+", default=[0.0, 0.8], help="of the synthetic predictor; 0 predicts nothing"
    )
    parser.add_argument("--routing", default="sticky:0.39", help="as of mixq bench")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write tests/accept/results/ram_tier.md")
    parser.add_argument("--json", type=Path, default=None, help="where to write the figures as JSON")
    parser.add_argument("--side", choices=["faults", "tier"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(run_side(arguments)))
        return
    if not arguments.folder.exists():
        FolderJob(arguments.folder, "mixtral-8x7b").run()
    rows = []
    with held_memory(arguments.lock) as how:
        print(f"{format_size(arguments.lock)} {how}; folder {format_size(folder_bytes(arguments.folder))}", flush=True)
        for side, recall in [("faults", 0.0), *(("tier", recall) for recall in arguments.recall)]:
            row = in_a_child(arguments, side, recall)
            rows.append(row)
            print(line_of(row), flush=True)
    if arguments.write:
        write_table(arguments, rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def in_a_child(arguments: argparse.Namespace, side: str, recall: float) -> dict[str, Any]:
    """Run a side in a process of its own, on a cold page cache."""
    evict(arguments.folder)
    rate = disk_rate(arguments.folder)
    command = [sys.executable, __file__, str(arguments.folder), "--side", side, "--recall", str(recall)]
    command += [
        "--routing",
        arguments.routing,
        "--tokens",
        str(arguments.tokens),
        "--warm",
        str(arguments.warm),
        "--seed",
        str(arguments.seed),
    ]
    if arguments.ram is not None:
        command += ["--ram", str(arguments.ram)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    evict(arguments.folder)
    rate = (rate + disk_rate(arguments.folder)) / 2  # a shared disk drifts
    limit = rate / row["bytes_per_token"] if row["bytes_per_token"] else float("inf")
    return row | {"disk_bytes_per_second": rate, "limit_tokens_per_second": limit}


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Decode and return the figures."""
    ram = arguments.ram if arguments.side == "tier" else 1 << 50  # so much that no tier is needed
    options = RuntimeOptions(device="cpu", ram=ram, context=arguments.tokens + arguments.warm + 8)
    model = Model(arguments.folder, options)
    routing = MadeUpRouting(arguments.routing, arguments.warm + arguments.tokens, model.config, arguments.seed)
    model.network.override_routing(routing)
    tier = model.placement.tier
    if (tier is None) != (arguments.side == "faults"):
        raise SystemExit(f"no tier: {RamTier.why_not(model.folder, ram)}")
    for layer in model.network.layers:
        if tier is not None:
            experts: Any = cast(SparseMoeBlock, layer.feed_forward).experts
            experts.tier = PredictingTier(tier, routing, arguments.recall[0])
    kv_cache = model.new_kv_cache()
    for token in range(arguments.warm + arguments.tokens):
        if token == arguments.warm:
            begun, read_before, counted = time.perf_counter(), disk_bytes(), tier and vars_of(tier)
        model.network.forward([Chunk(torch.tensor([token + 5]), kv_cache)])
    seconds = time.perf_counter() - begun
    read = disk_bytes() - read_before
    row = {
        "side": arguments.side,
        "recall": arguments.recall[0],
        "tokens": arguments.tokens,
        "tokens_per_second": arguments.tokens / seconds,
        "bytes_per_token": read / arguments.tokens,
        "peak_rss_bytes": peak_rss(),
    }
    if tier is not None and counted:
        row["tier"] = {name: value - counted[name] for name, value in vars_of(tier).items()}
        row["failure"] = tier.failure
        row["budget"] = tier.budget
    model.close()
    return row


def write_table(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """Write what was measured as a committed table."""
    header = ["", "tokens/s", "read per token", "disk", "of the disk's limit", "peak RSS"]
    table = [
        [
            "page faults alone" if row["side"] == "faults" else f"read ahead, predictions right {row['recall']:.0%}",
            f"{row['tokens_per_second']:.3f}",
            format_size(row["bytes_per_token"]),
            f"{format_size(row['disk_bytes_per_second'])}/s",
            f"{row['tokens_per_second'] / row['limit_tokens_per_second']:.0%}",
            format_size(row["peak_rss_bytes"]),
        ]
        for row in rows
    ]
    how = (
        f"Mixtral 8x7B's sizes, {format_size(folder_bytes(arguments.folder))} on disk, {format_size(arguments.lock)} "
        f"of {format_size(total_memory() or 0)} of memory locked away; {arguments.tokens} tokens after "
        f"{arguments.warm} others, {arguments.routing}. The disk's rate is that of direct reads before and after; the "
        "disk is shared and drifts, so what a token reads says more. The limit is the bytes read over that rate. "
        "Made by `python tests/bench/ram_tier.py DIR --write`."
    )
    write("ram_tier", "Less RAM than experts", how, markdown(header, table))


def vars_of(tier: RamTier) -> dict[str, int]:
    """Return the counters as plain data."""
    return {name: getattr(tier.counters, name) for name in tier.counters.__slots__}


def line_of(row: dict[str, Any]) -> str:
    """Return a row as text."""
    share = row["tokens_per_second"] / row["limit_tokens_per_second"]
    name = f"{row['side']}, recall {row['recall']}" if row["side"] == "tier" else row["side"]
    text = (
        f"{name:18} {row['tokens_per_second']:.3f} tokens/s  {format_size(row['bytes_per_token'])}/token from disk  "
        f"disk {format_size(row['disk_bytes_per_second'])}/s  {share:.0%} of its limit  "
        f"peak RSS {format_size(row['peak_rss_bytes'])}"
    )
    if "tier" in row:
        counters = row["tier"]
        text += f"\n    budget {format_size(row['budget'])}, " + ", ".join(
            f"{name} {format_size(value) if 'bytes' in name else value}" for name, value in counters.items()
        )
    return text


@contextmanager
def held_memory(nbytes: int) -> Iterator[str]:
    """Have a child hold memory; yields how: locked, or only touched."""
    if nbytes == 0:
        yield "held"
        return
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(nbytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.communicate("")


def shards(folder: Path) -> list[Path]:
    """Return the folder's large files."""
    return sorted(folder.glob("*.safetensors"))


def folder_bytes(folder: Path) -> int:
    """Return their size."""
    return sum(path.stat().st_size for path in shards(folder))


def evict(folder: Path) -> None:
    """Put the folder's pages out of the page cache."""
    for path in shards(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path, nbytes: int = 2 << 30, threads: int = 2) -> float:
    """Return bytes a second of direct, sequential reads of several files at once."""

    def read(path: Path) -> None:
        block = mmap.mmap(-1, DIRECT_BLOCK)  # aligned, as direct reads want it
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        left, place = nbytes // threads, 0
        while left > 0 and (count := os.preadv(handle, [block], place)) > 0:
            place, left = place + count, left - count
            if count < DIRECT_BLOCK:  # the end of the file
                place = 0
        os.close(handle)

    workers = [threading.Thread(target=read, args=(path,)) for path in shards(folder)[:threads]]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return nbytes // threads * len(workers) / (time.perf_counter() - begun)


def disk_bytes() -> int:
    """Return the bytes that this process had read from disks, by page faults too."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def peak_rss() -> int:
    """Return the most memory that this process has had mapped."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main()
