"""Tiny checkpoints packed by GPTQ and AWQ, written as the exporters write them: column by column, in numpy.

Nothing here is shared with the readers. The weights that a checkpoint stands for are worked out from the codes before
those are packed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

import mixq
from mixq.quantize.job import quantize
from mixq.quantize.sources.open import open_source
from mixq.quantize.sources.source import Source
from tests.checkpoints import write_tiny_mixtral

TOKENS = [1, 5, 9, 13, 60]


@dataclass
class Linear:
    """A weight [N, K] in groups: codes q and zeros are whole numbers of 0 and more, groups the group of each column."""

    q: NDArray[np.int64]  # [N, K]
    zeros: NDArray[np.int64]  # [N, G]
    scales: NDArray[np.float16]  # [N, G]
    groups: NDArray[np.int64]  # [K]

    @classmethod
    def of(cls, weight: Tensor, bits: int, groups: NDArray[np.int64], sym: bool) -> Linear:
        """Round a weight to the nearest codes, each group by its largest or by its lowest and highest weight."""
        W = weight.float().numpy()
        (N, _), G, top = W.shape, int(groups.max()) + 1, 2**bits - 1
        zeros, scales = np.zeros((N, G), np.int64), np.zeros((N, G), np.float16)
        q = np.zeros(W.shape, np.int64)
        for g in range(G):
            columns = groups == g
            part = W[:, columns]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            if sym:
                high = np.maximum(-low, high)
                low = -high
            scales[:, g] = np.maximum((high - low) / top, 1e-4)
            step = scales[:, g].astype(np.float32)
            zeros[:, g] = 2 ** (bits - 1) if sym else np.clip(np.round(-low / step), 0, top)
            q[:, columns] = np.clip(np.round(part / step[:, None]) + zeros[:, g, None], 0, top)
        return cls(q, zeros, scales, groups)

    def weight(self) -> Tensor:
        """Return what the codes stand for, float32."""
        W = np.zeros(self.q.shape, np.float32)
        for k, g in enumerate(self.groups):
            W[:, k] = (self.q[:, k] - self.zeros[:, g]).astype(np.float32) * self.scales[:, g].astype(np.float32)
        return torch.from_numpy(W)


def gptq_tensors(linear: Linear, bits: int, zero_offset: int) -> dict[str, Tensor]:
    """Return the tensors that AutoGPTQ stores."""
    N, K = linear.q.shape
    qweight = np.zeros((K * bits // 32, N), np.uint32)
    for k in range(K):
        qweight[k * bits // 32] |= linear.q[:, k].astype(np.uint32) << np.uint32(k * bits % 32)
    stored = (linear.zeros - zero_offset) % 2**bits
    qzeros = np.zeros((linear.zeros.shape[1], N * bits // 32), np.uint32)
    for n in range(N):
        qzeros[:, n * bits // 32] |= stored[n].astype(np.uint32) << np.uint32(n * bits % 32)
    return {
        "qweight": words(qweight),
        "qzeros": words(qzeros),
        "scales": torch.from_numpy(np.ascontiguousarray(linear.scales.T)),
        "g_idx": torch.from_numpy(linear.groups.astype(np.int32)),
    }


def awq_tensors(linear: Linear) -> dict[str, Tensor]:
    """Return the tensors that AutoAWQ stores for its gemm kernel."""

    def packed(columns: NDArray[np.int64]) -> Tensor:  # columns: [rows, N]
        result = np.zeros((columns.shape[0], columns.shape[1] // 8), np.uint32)
        for word in range(columns.shape[1] // 8):
            for i, position in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                result[:, word] |= columns[:, word * 8 + position].astype(np.uint32) << np.uint32(i * 4)
        return words(result)

    return {
        "qweight": packed(linear.q.T),
        "qzeros": packed(linear.zeros.T),
        "scales": torch.from_numpy(np.ascontiguousarray(linear.scales.T)),
    }


def words(packed: NDArray[np.uint32]) -> Tensor:
    return torch.from_numpy(packed.view(np.int32))


def write_gptq(
    path: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    act_order: bool = False,
    sym: bool = True,
    checkpoint_format: str | None = None,
    g_idx: bool = True,
    biases: bool = False,
    packs: Callable[[str], bool] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Write a GPTQ checkpoint; return the weights that it stands for, by per-expert name.

    Args:
        act_order: the columns of a group lie anywhere.
        checkpoint_format: None writes the format of the time before there were two.
        packs: which linear layers, by module name, are packed; the experts and the attention unless told.
        options: see `write_tiny_mixtral`.
    """

    def pack(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        K = weight.shape[1]
        groups = np.arange(K) // (K if group_size == -1 else group_size)
        if act_order:
            groups = np.random.default_rng(K).permutation(groups)
        linear = Linear.of(weight, bits, groups, sym)
        tensors = gptq_tensors(linear, bits, 0 if checkpoint_format == "gptq_v2" else 1)
        if not g_idx:
            del tensors["g_idx"]
        if biases:
            tensors["bias"] = torch.zeros(len(weight), dtype=torch.float16)
        return tensors, linear.weight()

    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": sym}
    config |= {"damp_percent": 0.1, "true_sequential": True, "model_file_base_name": "model"}
    if checkpoint_format is not None:
        config["checkpoint_format"] = checkpoint_format
    return _write(path, config, pack, packs or usual, options)


def write_awq(
    path: Path,
    *,
    group_size: int = 32,
    sym: bool = False,
    packs: Callable[[str], bool] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Write an AWQ checkpoint of version gemm; see `write_gptq`."""

    def pack(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        groups = np.arange(weight.shape[1]) // group_size
        linear = Linear.of(weight, 4, groups, sym)
        return awq_tensors(linear), linear.weight()

    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": not sym}
    return _write(path, config, pack, packs or usual, options)


def usual(module: str) -> bool:
    return "experts" in module or "self_attn" in module


def everything(module: str) -> bool:
    return usual(module) or module == "lm_head" or module.endswith(".gate")


def _write(
    path: Path,
    quantization: dict[str, Any],
    pack: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]],
    packs: Callable[[str], bool],
    options: dict[str, Any],
) -> dict[str, Tensor]:
    options = {"layers": 1, "experts": 8, "dtype": torch.float16, "tokenizer": False} | options
    tensors = write_tiny_mixtral(path, **options)
    stored, weights = {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if packs(module):
            packed, weights[name] = pack(module, tensor)
            stored |= {f"{module}.{suffix}": part for suffix, part in packed.items()}
        else:
            stored[name] = weights[name] = tensor
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"quantization_config": quantization}))
    return weights


def write_plain(path: Path, weights: dict[str, Tensor], like: Path) -> Path:
    """Write weights as a plain checkpoint, in float32, with another's config.json."""
    path.mkdir()
    save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, path / "model.safetensors")
    raw = json.loads((like / "config.json").read_text())
    raw.pop("quantization_config", None)
    (path / "config.json").write_text(json.dumps(raw))
    return path


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def assert_same_model(packed: Path, weights: dict[str, Tensor], tmp_path: Path, **options: Any) -> Source:
    """Check that a packed checkpoint gives the very folder that the weights it stands for give; return its source."""
    source = open_source(packed, **options)
    assert "quantization_config" not in source.raw_config
    for name, weight in weights.items():
        found = source.tensor(name)
        assert torch.equal(found.float(), weight.float()), name
    quantize(source, tmp_path / "out")
    quantize(write_plain(tmp_path / "plain", weights, packed), tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    found, expected = (mixq.load(tmp_path / name).forward(TOKENS) for name in ("out", "expected"))
    assert found.abs().max() > 0
    assert torch.equal(found, expected)
    return source


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit the tensors of a checkpoint of one file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **quantization: Any) -> None:
    """Change fields of a checkpoint's quantization_config; None takes one away."""
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= quantization
    raw["quantization_config"] = {key: value for key, value in raw["quantization_config"].items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
