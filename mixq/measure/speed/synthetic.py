"""Synthetic models: random weights with the sizes of real models, for speed measurements without a checkpoint.

Contract: every tensor has the dtype, shape and layout of a model folder, and separate memory, so that it is read from
RAM. Codes are uniform, and scales keep the variance of a layer's input, so activations stay finite through any number
of layers. The answers are meaningless. `SyntheticWeights` holds a whole model in memory; `parts` creates one part after
the other in the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.engine.model import Model
from mixq.errors import DoesNotFitError, UsageError, did_you_mean, is_integer, printable
from mixq.formats import nl4
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import Mix
from mixq.formats.nl4 import Specs
from mixq.formats.packed import PackedLinear, tensor_specs
from mixq.formats.scheme import Scheme
from mixq.measure.speed.filler import Filler
from mixq.models.presets import PRESETS
from mixq.plan.sizes import resolve_mix
from mixq.system.huge_pages import allocate
from mixq.system.memory import available_memory

DEFAULT_MIX = "default"
ALIGNMENT = 64
_USABLE = 0.95  # of the free memory; the rest is for activations and the system


def synthetic_model(
    model: str | Mapping[str, Any],
    *,
    layers: int | None = None,
    mix: str = DEFAULT_MIX,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Return a model with synthetic weights that runs at the speed of a real one.

    Args:
        model: name of a preset (`mixq.models.presets`), or the content of a config.json.
        layers: how many of its layers; None for all.
        mix: see `mixq.plan.sizes.resolve_mix`.
        seed: of the weights.
        options: fields of `RuntimeOptions`.

    Raises:
        UsageError: an unknown preset, mix or option, or more layers than the model has.
        DoesNotFitError: the weights need more memory than is free.
    """
    checked = RuntimeOptions.from_kwargs(**options)
    return Model(SyntheticWeights.make(model, layers=layers, mix=mix, seed=seed), checked)


@dataclass(frozen=True, slots=True)
class Part:
    """The tensors of one layer, or of those outside the layers (`layer` is None)."""

    layer: int | None
    parameters: tuple[Parameter, ...]
    specs: Specs  # {stored name: (dtype, shape)}
    packed: Mapping[str, tuple[Scheme, tuple[int, int]]]  # scheme and shape of the quantized linear layers

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors, without gaps for alignment."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.specs.values())

    def fill(self, filler: Filler, stored: Mapping[str, Tensor]) -> None:
        """Fill the tensors."""
        for parameter in self.parameters:
            filler.fill(parameter, self.packed.get(parameter.module), stored)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The shapes and schemes of a synthetic model, without values."""

    name: str  # of the preset, or the model type
    raw: Mapping[str, Any]  # the content of its config.json, without quantization_config
    config: ModelConfig
    mix: Mix | None  # None for unquantized weights
    parts: tuple[Part, ...]  # the layers in order, then the tensors outside them

    @classmethod
    def of(cls, model: str | Mapping[str, Any], *, layers: int | None = None, mix: str = DEFAULT_MIX) -> Recipe:
        """Resolve preset, layers and mix; see `synthetic_model` for arguments and errors."""
        name, raw = _named(model)
        config = _with_layers(name, ModelConfig.from_dict(raw), layers)
        resolved = resolve_mix(config, mix)
        by_layer: dict[int | None, list[Parameter]] = {}
        for parameter in parameters(config):
            by_layer.setdefault(parameter.layer, []).append(parameter)
        outside = by_layer.pop(None)
        parts = [_part(layer, members, resolved) for layer, members in by_layer.items()]
        raw = {**raw, "num_hidden_layers": config.num_hidden_layers}
        return cls(name, raw, config, resolved, (*parts, _part(None, outside, resolved)))


def parts(recipe: Recipe, seed: int) -> Iterator[tuple[Part, Mapping[str, Tensor]]]:
    """Create the model part by part, with the values of `SyntheticWeights.make`.

    The tensors {stored name: values} of a part are valid until the next part, which uses the same memory.
    """
    arena = allocate(max(_arena_bytes(part.specs) for part in recipe.parts))
    filler = Filler(seed)
    for part in recipe.parts:
        stored = _lay_out(part.specs, arena)
        part.fill(filler, stored)
        yield part, stored


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticWeights:
    """Synthetic weights, with the interface of a model folder (`mixq.formats.weights.Weights`)."""

    path: Path  # a name, such as `synthetic-mixtral-8x7b`, not an existing path
    config: ModelConfig
    mix: Mix | None  # None for unquantized weights
    stored: Mapping[str, Tensor]  # all tensors, by their names in a shard
    _packed: Mapping[str, tuple[Scheme, tuple[int, int]]]
    tokenizer_path: None = None
    generation_config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, model: str | Mapping[str, Any], *, layers: int | None = None, mix: str = DEFAULT_MIX, seed: int = 0
    ) -> SyntheticWeights:
        """Create the weights in memory; arguments and errors as in `synthetic_model`."""
        recipe = Recipe.of(model, layers=layers, mix=mix)
        specs = {name: spec for part in recipe.parts for name, spec in part.specs.items()}
        _check_memory(recipe, _arena_bytes(specs))
        stored = _lay_out(specs, allocate(_arena_bytes(specs)))
        filler = Filler(seed)
        for part in recipe.parts:
            part.fill(filler, stored)
        packed = {name: kind for part in recipe.parts for name, kind in part.packed.items()}
        return cls(Path(f"synthetic-{recipe.name}"), recipe.config, recipe.mix, stored, packed)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.config.eos_token_ids

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its name; KeyError if there is none."""
        if name.removesuffix(".weight") in self._packed:
            raise KeyError(name)
        return self.stored[name]

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a linear layer's weight [N, K] by the layer's name: a tensor, or its packed tensors."""
        if module not in self._packed:
            return self.stored[f"{module}.weight"]
        scheme, shape = self._packed[module]
        tensors = {suffix: self.stored[f"{module}.{suffix}"] for suffix in tensor_specs(scheme, shape)}
        return PackedLinear(scheme, shape, tensors, nl4.table_tensor() if scheme.name == "nl4" else None)


def _named(model: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(model, str):
        return str(model.get("model_type", "model")), model
    if model not in PRESETS:
        raise UsageError(
            f"unknown preset {printable(repr(model))}; choose from {', '.join(PRESETS)}."
            + did_you_mean(model.lower(), PRESETS)
        )
    return model, PRESETS[model]


def _with_layers(name: str, config: ModelConfig, layers: int | None) -> ModelConfig:
    if layers is None:
        return config
    if not is_integer(layers, 1, config.num_hidden_layers):
        raise UsageError(
            f"layers is {printable(repr(layers))}; {name} has {config.num_hidden_layers}, so it must be a whole number "
            f"from 1 to {config.num_hidden_layers}."
        )
    return replace(config, num_hidden_layers=layers)


def _part(layer: int | None, members: list[Parameter], mix: Mix | None) -> Part:
    specs: Specs = {}
    packed: dict[str, tuple[Scheme, tuple[int, int]]] = {}
    for parameter in members:
        scheme = None if mix is None else mix.scheme_of(parameter)
        if scheme is None:
            specs[parameter.name] = (torch.bfloat16, parameter.shape)
            continue
        N, K = parameter.shape
        packed[parameter.module] = scheme, (N, K)
        specs |= {f"{parameter.module}.{suffix}": spec for suffix, spec in tensor_specs(scheme, (N, K)).items()}
    return Part(layer, tuple(members), specs, packed)


def _check_memory(recipe: Recipe, needed: int) -> None:
    free = available_memory()
    if free is None or needed <= free * _USABLE:
        return
    layers, layer_bytes = recipe.config.num_hidden_layers, _arena_bytes(recipe.parts[0].specs)
    fitting = int((free * _USABLE - (needed - layers * layer_bytes)) // layer_bytes)
    raise DoesNotFitError(
        f"{recipe.name} with {layers} layers needs {format_size(needed)} of memory; {format_size(free)} are free.",
        hint=f"{fitting} layers fit: --layers {fitting}."
        if fitting > 0
        else "Not even one layer fits: choose a smaller preset, or --mix all-nl4.",
    )


def _padded(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return -(-dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT


def _arena_bytes(specs: Specs) -> int:
    return sum(_padded(dtype, shape) for dtype, shape in specs.values())


def _lay_out(specs: Specs, arena: Tensor) -> dict[str, Tensor]:
    """Return unfilled tensors, one after the other in `arena`, uint8 of at least `_arena_bytes`."""
    tensors, start = {}, 0
    for name, (dtype, shape) in specs.items():
        end = start + dtype.itemsize * math.prod(shape)
        tensors[name] = arena[start:end].view(dtype).view(shape)
        start += _padded(dtype, shape)
    return tensors
