"""A checkpoint of a model's true sizes whose bytes are made up as they are asked for, served by a hub of its own.

    python -m tests.bench.made_up_checkpoint mixtral-8x7b [--layers N]

prints the hub's address and serves synthetic/NAME until it is killed. Weights are normal numbers of bfloat16, the same
every time; no two tensors have the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mixq.config import ModelConfig
from mixq.formats.architecture import Parameter, parameters
from mixq.models.presets import PRESETS
from tests.fake_hub import SEND, FakeHub, Stored

OWNER = "synthetic"
BLOCK = (64 << 20) + 4098
"""Bytes of the pattern that is repeated: an odd number of weights, so that tensors begin at other places of it."""

SHARD = 5_000_000_000
"""Bytes of a file at most, as on the real hub."""


class Pattern:
    """Normal weights without end; a second copy behind lets every part be handed out as a view."""

    def __init__(self) -> None:
        weights = torch.randn(BLOCK // 2, generator=torch.Generator().manual_seed(20_261_123)) * 0.02
        block = weights.to(torch.bfloat16).view(torch.uint8)
        self._bytes = memoryview(torch.cat([block, block[: 2 * SEND]]).numpy().data).cast("B")

    def read(self, position: int, count: int) -> memoryview:
        start = position % BLOCK
        return self._bytes[start : start + count]


class MadeUpShard:
    """A safetensors file of bfloat16 tensors that is never written."""

    def __init__(self, tensors: list[Parameter], pattern: Pattern, place: int) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for parameter in tensors:
            end = position + 2 * parameter.numel
            header[parameter.name] = {
                "dtype": "BF16",
                "shape": list(parameter.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._pattern, self._place = pattern, place
        self.size = len(self._head) + position
        self.sha256 = hashlib.sha256(self._head + place.to_bytes(8)).hexdigest()  # a name for it, not its sum

    def read(self, start: int, end: int) -> bytes | memoryview:
        head = self._head[start:end]
        if head:
            return head + bytes(self._pattern.read(self._place, end - start - len(head)))
        return self._pattern.read(self._place + start - len(self._head), end - start)


def repository(name: str, layers: int | None = None) -> dict[str, Any]:
    """Return the files of a preset's checkpoint."""
    raw = dict(PRESETS[name])
    if layers is not None:
        raw["num_hidden_layers"] = layers
    config = ModelConfig.from_dict(raw)
    shards: list[list[Parameter]] = [[]]
    for parameter in parameters(config):
        if sum(2 * other.numel for other in shards[-1]) + 2 * parameter.numel > SHARD:
            shards.append([])
        shards[-1].append(parameter)
    pattern, place = Pattern(), 0
    files: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        shard = MadeUpShard(tensors, pattern, place)
        files[file], place = shard, place + shard.size
        weight_map |= {parameter.name: file for parameter in tensors}
    texts = {"config.json": raw, "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map}}
    files |= {file: Stored(json.dumps(content).encode()) for file, content in texts.items()}
    mistral_common = find_spec("mistral_common")  # has Mixtral's own tokenizer
    if mistral_common is not None and mistral_common.origin is not None and config.vocab_size == 32000:
        tokenizer = Path(mistral_common.origin).parent / "data" / "tokenizer.model.v1"
        files["tokenizer.model"] = Stored(tokenizer.read_bytes())
    return files


def main() -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with FakeHub({f"{OWNER}/{arguments.preset}": repository(arguments.preset, arguments.layers)}) as hub:
        print(hub.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
