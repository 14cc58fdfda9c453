"""Adapters merged into a source: the bytes that a merge by hand gives, and every adapter that cannot be merged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixq.errors import ModelFileError, UsageError
from mixq.formats.architecture import parameters
from mixq.quantize.job import quantize
from mixq.quantize.sources import lora
from mixq.quantize.sources.lora import LoraSource
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_llama, write_tiny_mistral, write_tiny_mixtral

PREFIX = "base_model.model."
Q, W2 = "model.layers.1.self_attn.q_proj", "model.layers.0.block_sparse_moe.experts.1.w2"
ROUTER, HEAD, EMBEDDING = "model.layers.1.block_sparse_moe.gate", "lm_head", "model.embed_tokens"
SHAPES = {Q: (128, 128), W2: (128, 256), ROUTER: (2, 128), HEAD: (64, 128)}
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False, "use_dora": False}

Tensors = dict[str, Tensor]


def pair(module: str, shape: tuple[int, ...], rank: int = 4, end: str = ".weight") -> Tensors:
    g = torch.Generator().manual_seed(sum(map(ord, module)))
    N, K = shape
    name = f"{PREFIX}{module}.lora_"
    return {
        f"{name}A{end}": torch.randn(rank, K, generator=g) * 0.1,
        f"{name}B{end}": torch.randn(N, rank, generator=g),
    }


def write_adapter(path: Path, tensors: Tensors, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    (path / "README.md").write_text("ignored")
    (path / "tokenizer_config.json").write_text('{"ignored": true}')
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tiny_mixtral(tmp_path / "base", experts=2)
    return tmp_path / "base"


def by_hand(base: Path, changed: dict[str, Callable[[Tensor], Tensor]]) -> Path:
    """Write the checkpoint with the changed tensors in float32 and return it."""
    merged = base.with_name("merged")
    merged.mkdir()
    for path in base.iterdir():
        (merged / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    for name, change in changed.items():
        tensors[name] = change(tensors[name].double()).float().contiguous()
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    return merged


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def assert_same_bytes(base: Path, adapter: Path, changed: dict[str, Callable[[Tensor], Tensor]]) -> None:
    tmp_path = base.parent
    quantize(LoraSource(open_source(base), adapter), tmp_path / "out")
    quantize(by_hand(base, changed), tmp_path / "expected")
    quantize(base, tmp_path / "untouched")
    assert shards(tmp_path / "out") == shards(tmp_path / "expected")
    assert shards(tmp_path / "out") != shards(tmp_path / "untouched")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "expected" / "config.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()


def added(tensors: Tensors, module: str, scale: float, end: str = ".weight") -> Callable[[Tensor], Tensor]:
    A, B = (tensors[f"{PREFIX}{module}.lora_{side}{end}"].double() for side in "AB")
    return lambda W: W + scale * (B @ A)


def merges(
    tensors: Tensors, scale: float, *modules: str, end: str = ".weight"
) -> dict[str, Callable[[Tensor], Tensor]]:
    return {f"{module}.weight": added(tensors, module, scale, end) for module in modules}


@pytest.mark.parametrize("end", [".weight", ".default.weight", ".my-adapter.weight"])
def test_the_bytes_of_a_merge_by_hand(end: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "BLOCK", 1000)  # blocks of a few rows, the last one shorter
    tensors = {name: tensor for module, shape in SHAPES.items() for name, tensor in pair(module, shape, 4, end).items()}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    assert_same_bytes(base, adapter, merges(tensors, 6 / 4, *SHAPES, end=end))
    assert json.loads((tmp_path / "out" / "mixq.json").read_text())["source"]["name"] == "base+adapter"


def test_the_number_of_threads_does_not_show(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "BLOCK", 1000)
    source = LoraSource(open_source(base), write_adapter(tmp_path / "adapter", pair(W2, SHAPES[W2])))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        found.append(source.tensor(f"{W2}.weight"))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_low_precision_adapters(base: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in pair(Q, SHAPES[Q]).items()}
    assert_same_bytes(base, write_adapter(tmp_path / "adapter", tensors), merges(tensors, 6 / 4, Q))


def test_rank_stabilised_and_patterns(base: Path, tmp_path: Path) -> None:
    first, second, third = "model.layers.0.self_attn.q_proj", Q, W2
    tensors = pair(first, SHAPES[Q], 4) | pair(second, SHAPES[Q], 8) | pair(third, SHAPES[W2], 2)
    patterns: dict[str, Any] = {
        "rank_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 8, r"experts\.\d+\.w[12]": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 20, r"_proj_": 1000},
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, use_rslora=True, **patterns)
    scales = ((first, 6 / 2), (second, 20 / math.sqrt(8)), (third, 6 / math.sqrt(2)))
    assert_same_bytes(base, adapter, {f"{m}.weight": added(tensors, m, scale) for m, scale in scales})


def test_embedding_head_and_what_was_trained_in_full(base: Path, tmp_path: Path) -> None:
    A, B = torch.randn(4, 64) * 0.1, torch.randn(128, 4)
    norm, head = torch.rand(128), torch.randn(64, 128)
    embedding = torch.randn(64, 128)
    tensors = pair(HEAD, SHAPES[HEAD]) | {
        f"{PREFIX}{EMBEDDING}.lora_embedding_A": A,
        f"{PREFIX}{EMBEDDING}.lora_embedding_B": B,
        f"{PREFIX}{EMBEDDING}.base_layer.weight": embedding,
        f"{PREFIX}{HEAD}.modules_to_save.default.weight": head,
        f"{PREFIX}model.norm.weight": norm.half(),
    }
    source = LoraSource(open_source(base), write_adapter(tmp_path / "adapter", tensors))
    assert source.notices == ("the adapter adapter is merged into 2 linear layers and replaces 3 tensors in full.",)
    assert source.tensor("model.norm.weight").dtype == torch.float32
    changed = {
        f"{EMBEDDING}.weight": lambda W: embedding.double() + 1.5 * (B.double() @ A.double()).T,
        f"{HEAD}.weight": lambda W: added(tensors, HEAD, 1.5)(head.double()),
        "model.norm.weight": lambda W: norm.half().double(),
    }
    assert_same_bytes(base, tmp_path / "adapter", changed)


def test_newer_names_of_experts_and_router(base: Path, tmp_path: Path) -> None:
    for old, new in (
        (W2, "model.layers.0.mlp.experts.1.down_proj"),
        (ROUTER, "model.layers.1.mlp.gate"),
        (Q, Q.removeprefix("model.")),  # of a model without a head
    ):
        plain = write_adapter(tmp_path / "plain", tensors := pair(old, SHAPES[old]))
        renamed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        again = write_adapter(tmp_path / "again", renamed)
        name = f"{old}.weight"
        first, second = (LoraSource(open_source(base), folder).tensor(name) for folder in (plain, again))
        assert torch.equal(first, second)
        assert not torch.equal(first, open_source(base).tensor(name).float())


@pytest.mark.parametrize("ffn", [128, 256])
def test_fused_experts(ffn: int, tmp_path: Path) -> None:
    base, layer, E, r = tmp_path / "base", "model.layers.1", 2, 3
    write_tiny_mixtral(base, experts=E, ffn=ffn)
    g = torch.Generator().manual_seed(5)
    up, down = f"{PREFIX}{layer}.mlp.experts.base_layer.lora_", f"{PREFIX}{layer}.mlp.experts.lora_"
    shapes = {f"{up}A": (r * E, 128), f"{up}B": (2 * ffn, r * E), f"{down}A": (r * E, ffn), f"{down}B": (128, r * E)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=g) * 0.1 for name, shape in shapes.items()}
    config: dict[str, Any] = {"rank_pattern": {"down_proj": r, "gate_up_proj": r}, "alpha_pattern": {"down_proj": 9}}
    adapter = write_adapter(tmp_path / "adapter", tensors, target_parameters=["mlp.experts.down_proj"], **config)

    def change(name: str, expert: int, rows: slice, scale: float) -> Callable[[Tensor], Tensor]:
        A, B = (tensors[f"{name}{side}.weight"].double() for side in "AB")
        return lambda W: W + scale * B[rows, expert::E] @ A[expert * r : (expert + 1) * r]

    prefix = f"{layer}.block_sparse_moe.experts"
    changed = {f"{prefix}.{e}.w1.weight": change(up, e, slice(0, ffn), 6 / r) for e in range(E)}
    changed |= {f"{prefix}.{e}.w3.weight": change(up, e, slice(ffn, 2 * ffn), 6 / r) for e in range(E)}
    changed |= {f"{prefix}.{e}.w2.weight": change(down, e, slice(0, 128), 9 / r) for e in range(E)}
    assert_same_bytes(base, adapter, changed)
    write_adapter(tmp_path / "adapter", tensors, r=2)
    with pytest.raises(ModelFileError, match=rf"\[{r * E}, 128\] instead of \[4, 128\]: rank 3, and .* says 2"):
        LoraSource(open_source(base), adapter)


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_mistral])
def test_dense_models(write: Callable[..., Tensors], tmp_path: Path) -> None:
    write(tmp_path / "base")
    modules = {"model.layers.1.mlp.down_proj": (128, 256), "model.layers.0.mlp.gate_proj": (256, 128)}
    tensors = {name: tensor for module, shape in modules.items() for name, tensor in pair(module, shape).items()}
    # PEFT ignores it for a linear layer too
    adapter = write_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True)
    assert_same_bytes(tmp_path / "base", adapter, merges(tensors, 1.5, *modules))


def test_what_is_not_touched_stays_the_sources_own(base: Path, tmp_path: Path) -> None:
    quantize(base, tmp_path / "packed", format="w8")
    packed = open_source(tmp_path / "packed", mixq_folders=True)
    source = LoraSource(packed, write_adapter(tmp_path / "adapter", pair(Q, SHAPES[Q])))
    for parameter in parameters(source.config):
        touched = parameter.module == Q
        assert source.kept(parameter) == (None if touched else packed.kept(parameter))
        assert touched or torch.equal(source.tensor(parameter.name), packed.tensor(parameter.name))
    other = W2
    assert torch.equal(source.packed(other).dequantize(), packed.packed(other).dequantize())
    assert (source.path, source.config, source.nbytes) == (packed.path, packed.config, packed.nbytes)
    assert (source.raw_config, source.side_files()) == (packed.raw_config, packed.side_files())
    assert source.notices[:-1] == packed.notices
    assert source.notices[-1] == "the adapter adapter is merged into 1 linear layer."


def test_the_fingerprint_follows_base_and_adapter(base: Path, tmp_path: Path) -> None:
    def fingerprint(adapter: Path) -> str:
        return LoraSource(open_source(base), adapter).fingerprint()

    tensors = pair(Q, SHAPES[Q])
    first = fingerprint(write_adapter(tmp_path / "adapter", tensors))
    assert fingerprint(write_adapter(tmp_path / "moved", tensors)) == first
    assert fingerprint(write_adapter(tmp_path / "adapter", tensors, lora_alpha=7)) != first
    assert fingerprint(write_adapter(tmp_path / "adapter", pair(W2, SHAPES[W2]))) != first
    write_adapter(tmp_path / "adapter", tensors)
    write_tiny_mixtral(base, experts=2, seed=1)
    assert fingerprint(tmp_path / "adapter") != first


def test_an_interrupted_job_is_not_gone_on_with_another_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pair(Q, SHAPES[Q]))
    quantize(LoraSource(open_source(base), adapter), tmp_path / "out")
    assert quantize(LoraSource(open_source(base), adapter), tmp_path / "out").already_done
    write_adapter(tmp_path / "adapter", pair(Q, SHAPES[Q]), lora_alpha=7)
    with pytest.raises(UsageError, match="another checkpoint"):
        quantize(LoraSource(open_source(base), adapter), tmp_path / "out")
