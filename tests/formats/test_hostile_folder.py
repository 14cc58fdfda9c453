"""Whole folders under mutation: config.json, the index, mixq.json and generation_config.json take telling values."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixq.errors import ModelFileError
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import Manifest
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import ATTENTION_TARGET, EXPERTS_TARGET, QuantizationConfig
from mixq.formats.scheme import Scheme

SEED = 20260723
ROUNDS = 300

TELLING: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 16, 32, 128, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308),
    *(
        "",
        "a",
        "1",
        "32",
        "nl4",
        "..",
        "../x",
        "\0",
        "\x1b[2J",
        "\ud800",
        "é" * 300,
        "re:",
        "re:(",
        "re:.*",
        ".*",
        "(a+)+$",
    ),
    *([], [[]], [None], [1, 2], {}, {"": {}}, {"a": None}, {"scheme": "w8", "group_size": 128}, [0] * 10_000),
    *(
        "Linear",
        "bfloat16",
        "torch.float16",
        "float64",
        "mixq",
        "compressed-tensors",
        "bitsandbytes",
        "MistralForCausalLM",
    ),
    *(list(range(16)), list(range(-8, 8))),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, child in value.items():
            yield from places(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value[:4]):
            yield from places(child, (*path, i))


def mutate(original: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    """Replace, remove, rename or move something in a JSON object."""
    raw = copy.deepcopy(original)
    for _ in range(random_.randint(1, 2)):
        found = list(places(raw))
        if not found:
            break
        *parents, last = random_.choice(found)
        holder = raw
        for parent in parents:
            holder = holder[parent]
        kind = random_.randrange(6)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(random_.choice(TELLING))] = holder.pop(last)
        elif kind == 2:
            *path, key = random_.choice(found)
            other: Any = raw
            for step in path:
                other = other[step] if not isinstance(other, dict) else other.get(step, {})
            if isinstance(other, dict):
                holder[last] = copy.deepcopy(other.get(key))
        else:
            holder[last] = copy.deepcopy(random_.choice(TELLING))
    return raw


def use(folder: ModelFolder) -> None:
    """Touch what an opened folder hands out."""
    for name in ("lm_head", "model.layers.1.block_sparse_moe.experts.1.w2", "model.layers.0.self_attn.q_proj"):
        weight = folder.linear(name)
        dense = weight.dequantize() if isinstance(weight, PackedLinear) else weight.float()
        assert dense.shape == tuple(weight.shape)
        assert torch.isfinite(dense).all()
    assert folder.eos_token_ids


@pytest.mark.parametrize("method", ["mixq", "compressed-tensors"])
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors.index.json", "generation_config.json", "mixq.json"]
)  # fmt: skip
def test_mutated_folders_are_opened_rightly_or_refused(
    method: str, file: str, tmp_path: Path, folders: SimpleNamespace
) -> None:
    print(f"seed {SEED}")
    random_ = random.Random(SEED)
    config = folders.tiny_config(intermediate_size=128, num_local_experts=2, vocab_size=32)
    quantization = (
        QuantizationConfig.mixq({r".*\.experts\..*": Scheme("nl4", 32), r"lm_head|.*_proj": Scheme("w8", 128)})
        if method == "mixq"
        else QuantizationConfig.compressed_tensors(
            {EXPERTS_TARGET: Scheme("w4", 32), ATTENTION_TARGET: Scheme("w8", 128)}
        )
    )
    folders.write_folder(tmp_path, config, folders.random_state(config), quantization, shards=2)
    generation = {"eos_token_id": [2], "bos_token_id": 1, "temperature": 0.7}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    Manifest(
        {"name": "x"}, {"format": "nl4"}, {"a.safetensors": "0" * 64}, {"config.json": "1" * 64}, {"w": 0.1}
    ).write(tmp_path)
    original = json.loads((tmp_path / file).read_bytes())
    use(ModelFolder.open(tmp_path))
    outcomes = {"refused": 0, "opened": 0}
    for _ in range(ROUNDS):
        (tmp_path / file).write_text(json.dumps(mutate(original, random_)), encoding="utf-8")
        started = time.process_time()
        try:
            Manifest.read(tmp_path)
            use(ModelFolder.open(tmp_path))
        except ModelFileError as error:
            message = error.message
            outcomes["refused"] += 1
        else:
            message = "opened"
            outcomes["opened"] += 1
        assert message.isprintable()
        assert time.process_time() - started < 5
    assert outcomes["refused"] > 20, outcomes
