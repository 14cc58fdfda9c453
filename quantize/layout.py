"""The target folder before it exists: the shard, scheme and bytes of each tensor.

Contract: one shard per layer and one for the rest, every size exact. Tensors that are not quantized are stored in
bfloat16, whatever the source's dtype, so that one model gives one folder. Nothing is read or written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixq.config import ModelConfig
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import Mix
from mixq.formats.packed import tensor_specs
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.formats.shard_writer import ShardSpecs, shard_size

STORED_DTYPE = torch.bfloat16
"""The dtype of unquantized tensors and of w4's and w8's scales; float16 if a source's float16 scales are kept."""


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor of the model and its scheme in the target."""

    parameter: Parameter
    scheme: Scheme | None  # None for a tensor that is not quantized
    dtype: torch.dtype = STORED_DTYPE  # of a tensor that is not quantized, and of the scales of w4 and w8
    kept: bool = False  # the source has the same scheme, and its bytes are copied

    def specs(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return {stored name: (dtype, shape)}."""
        if self.scheme is None:
            return {self.parameter.name: (self.dtype, self.parameter.shape)}
        N, K = self.parameter.shape
        packed = tensor_specs(self.scheme, (N, K), self.dtype)
        return {f"{self.parameter.module}.{suffix}": spec for suffix, spec in packed.items()}

    @property
    def scheme_text(self) -> str:
        """The scheme, or the dtype of unquantized tensors, for reports."""
        return str(self.scheme) if self.scheme else str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.specs().values())


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the target."""

    file: str
    items: tuple[Item, ...]

    def specs(self) -> ShardSpecs:
        """Return {stored name: (dtype, shape)} of the whole file."""
        return {name: spec for item in self.items for name, spec in item.specs().items()}

    @property
    def size(self) -> int:
        """Bytes of the file, header and padding included."""
        return shard_size(self.specs())

    @property
    def weights(self) -> int:
        return sum(item.parameter.numel for item in self.items)


def plan_shards(
    config: ModelConfig,
    mix: Mix,
    dtype: torch.dtype = STORED_DTYPE,
    kept: Callable[[Parameter], bool] = lambda _: False,
) -> list[Shard]:
    """Return the files of the target in the order of writing, layers first.

    `kept` returns whether the source has a linear layer in the target's scheme.
    """
    by_layer: dict[int | None, list[Item]] = {}
    for parameter in parameters(config):
        item = Item(parameter, mix.scheme_of(parameter), dtype, kept(parameter))
        by_layer.setdefault(parameter.layer, []).append(item)
    rest = by_layer.pop(None)
    total = len(by_layer) + 1
    contents = [*by_layer.values(), rest]
    return [Shard(f"model-{i:05d}-of-{total:05d}.safetensors", tuple(items)) for i, items in enumerate(contents, 1)]


def all_items(shards: Sequence[Shard]) -> Iterator[Item]:
    """Yield the tensors of all shards."""
    return (item for shard in shards for item in shard.items)


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return the content of model.safetensors.index.json."""
    weight_map = {name: shard.file for shard in shards for name in shard.specs()}
    return {"metadata": {"total_size": sum(item.nbytes for item in all_items(shards))}, "weight_map": weight_map}


def target_config(
    raw: Mapping[str, Any],
    config: ModelConfig,
    quantization: QuantizationConfig | None,
    dtype: torch.dtype = STORED_DTYPE,
) -> dict[str, Any]:
    """Return the target's config.json: the source's fields, as both transformers 4 and 5 read them."""
    target = {key: value for key, value in raw.items() if key not in ("rope_parameters", "dtype")}
    target["architectures"] = [config.architecture]
    target["rope_theta"] = config.rope_theta
    if config.is_moe or "sliding_window" in target:
        target["sliding_window"] = config.sliding_window
    target["torch_dtype"] = str(dtype).removeprefix("torch.")
    if quantization is not None:
        target["quantization_config"] = quantization.to_dict()
    return target
