"""Models of true sizes with made-up weights, in seconds: what a speed can be measured on without a checkpoint.

Contract: every tensor has the dtype, shape and layout that the model folder would have, and memory of its own, so that
reads come from RAM. The values are random and tame: codes uniform, scales such that a Linear keeps the variance of
what it is given, so that activations stay finite through any number of layers. What the model says means nothing.

Random numbers cost more than the memory they fill, so one block of them is repeated. Its length is a prime: no two rows
of a matrix and no two experts are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.huge_pages import allocate
from mixq.config import ModelConfig, RuntimeOptions, did_you_mean, format_size
from mixq.engine import Model
from mixq.errors import DoesNotFitError, UsageError, printable
from mixq.formats import nf4, nl4
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.mix import AS_IT_IS, FORMATS, Mix
from mixq.formats.nl4 import Specs
from mixq.formats.packed import PackedLinear, tensor_specs
from mixq.formats.scheme import Scheme
from mixq.memory import available_memory
from mixq.models.presets import PRESETS

DEFAULT_MIX = "default"
ALIGNMENT = 64
_BLOCK = 4_194_301  # the largest prime below 4 Mi
_SCALES = 65_521  # the largest prime below 64 Ki
_USABLE = 0.95  # of the memory that is free; the rest is for activations and the system


def synthetic_model(
    model: str | Mapping[str, Any],
    *,
    layers: int | None = None,
    mix: str = DEFAULT_MIX,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Return a model with made-up weights that runs at the speed of a real one.

    Args:
        model: name of a preset (`mixq.models.presets`), or the content of a config.json.
        layers: how many of its layers; None for all.
        mix: `default`, `all-nl4`, pairs such as `experts=nl4:16,o=w8`, a format (`w4`, `w8`, `nf4`) for that
            format's own mix, or `bf16` for no quantization.
        seed: of the weights.
        options: fields of `RuntimeOptions`.

    Raises:
        UsageError: an unknown preset, mix or option, or more layers than the model has.
        DoesNotFitError: the weights need more memory than is free.
    """
    checked = RuntimeOptions.from_kwargs(**options)
    return Model(SyntheticWeights.make(model, layers=layers, mix=mix, seed=seed), checked)


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticWeights:
    """Made-up weights, with what a model folder says of its own (`mixq.formats.weights.Weights`).

    Attributes:
        path: a name, `synthetic-mixtral-8x7b`; nothing lies there.
        mix: None for unquantized weights.
        stored: every tensor by the name that it would have in a shard.
    """

    path: Path
    config: ModelConfig
    mix: Mix | None
    stored: Mapping[str, Tensor]
    _packed: Mapping[str, tuple[Scheme, tuple[int, int]]]
    tokenizer_path: None = None
    generation_config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, model: str | Mapping[str, Any], *, layers: int | None = None, mix: str = DEFAULT_MIX, seed: int = 0
    ) -> SyntheticWeights:
        """Make the weights up; see `synthetic_model`."""
        name, config = _config_of(model, layers)
        resolved = resolve_mix(config, mix)
        specs: Specs = {}
        packed: dict[str, tuple[Scheme, tuple[int, int]]] = {}
        layer_bytes = 0
        for parameter in parameters(config):
            scheme = None if resolved is None else resolved.scheme_of(parameter)
            if scheme is None:
                own: Specs = {parameter.name: (torch.bfloat16, parameter.shape)}
            else:
                N, K = parameter.shape
                packed[parameter.module] = scheme, (N, K)
                own = {f"{parameter.module}.{suffix}": spec for suffix, spec in tensor_specs(scheme, (N, K)).items()}
            specs |= own
            layer_bytes += _arena_bytes(own) if parameter.layer == 0 else 0
        _check_memory(name, config, _arena_bytes(specs), layer_bytes)
        stored = _lay_out(specs)
        filler = _Filler(seed)
        for parameter in parameters(config):
            filler.fill(parameter, packed.get(parameter.module), stored)
        return cls(Path(f"synthetic-{name}"), config, resolved, stored, packed)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.config.eos_token_ids

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its name; KeyError where there is none."""
        if name.removesuffix(".weight") in self._packed:
            raise KeyError(name)
        return self.stored[name]

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a Linear's weight [N, K] by the Linear's name: a tensor, or its packed tensors."""
        if module not in self._packed:
            return self.stored[f"{module}.weight"]
        scheme, shape = self._packed[module]
        tensors = {suffix: self.stored[f"{module}.{suffix}"] for suffix in tensor_specs(scheme, shape)}
        return PackedLinear(scheme, shape, tensors, nl4.table_tensor() if scheme.name == "nl4" else None)


def resolve_mix(config: ModelConfig, text: str) -> Mix | None:
    """Return the mix that `text` means (see `synthetic_model`), or None for unquantized weights."""
    if text == AS_IT_IS:
        return None
    if text in FORMATS:
        return Mix.resolve(config, format=text)
    return Mix.resolve(config, mix=None if text == DEFAULT_MIX else text)


def _config_of(model: str | Mapping[str, Any], layers: int | None) -> tuple[str, ModelConfig]:
    if isinstance(model, str):
        if model not in PRESETS:
            raise UsageError(
                f"unknown preset {printable(repr(model))}; there are {', '.join(PRESETS)}."
                + did_you_mean(model.lower(), PRESETS)
            )
        name, config = model, ModelConfig.from_dict(PRESETS[model])
    else:
        config = ModelConfig.from_dict(model)
        name = str(model.get("model_type", "model"))
    if layers is None:
        return name, config
    if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= config.num_hidden_layers:
        raise UsageError(
            f"layers is {printable(repr(layers))}; {name} has {config.num_hidden_layers}, so it must be a whole number "
            f"from 1 to {config.num_hidden_layers}."
        )
    return name, replace(config, num_hidden_layers=layers)


def _check_memory(name: str, config: ModelConfig, needed: int, layer_bytes: int) -> None:
    free = available_memory()
    if free is None or needed <= free * _USABLE:
        return
    layers = config.num_hidden_layers
    fitting = int((free * _USABLE - (needed - layers * layer_bytes)) // layer_bytes)
    raise DoesNotFitError(
        f"{name} with {layers} layers needs {format_size(needed)} of memory; {format_size(free)} are free.",
        hint=f"{fitting} layers fit: --layers {fitting}."
        if fitting > 0
        else "Not one layer fits: choose a smaller preset, or --mix all-nl4.",
    )


def _padded(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return -(-dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT


def _arena_bytes(specs: Specs) -> int:
    return sum(_padded(dtype, shape) for dtype, shape in specs.values())


def _lay_out(specs: Specs) -> dict[str, Tensor]:
    """Return tensors one after the other in one piece of memory, not yet filled."""
    arena = allocate(_arena_bytes(specs))
    tensors, start = {}, 0
    for name, (dtype, shape) in specs.items():
        end = start + dtype.itemsize * math.prod(shape)
        tensors[name] = arena[start:end].view(dtype).view(shape)
        start += _padded(dtype, shape)
    return tensors


class _Filler:
    """Fills tensors from blocks of random numbers that repeat without end; each tensor takes the next piece."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._bytes = torch.empty(_BLOCK, dtype=torch.uint8).random_(0, 256, generator=generator)
        self._normal: Tensor | None = None
        self._generator = generator
        signs = torch.empty(_SCALES).random_(0, 2, generator=generator) * 2 - 1
        self._scales = (signs * torch.empty(_SCALES).uniform_(0.6, 1.0, generator=generator)).contiguous()
        self._scales_rms = _rms(self._scales)
        self._made: dict[tuple[torch.dtype, float], Tensor] = {}
        self._taken = 0

    def fill(
        self, parameter: Parameter, packed: tuple[Scheme, tuple[int, int]] | None, stored: Mapping[str, Tensor]
    ) -> None:
        """Give one parameter its values."""
        if packed is not None:
            self._fill_packed(parameter.module, *packed, stored)
        elif parameter.role == "norm":
            stored[parameter.name].fill_(1.0)
        else:
            spread = 1.0 if parameter.role == "embedding" else parameter.shape[1] ** -0.5
            self._tile(stored[parameter.name], self._weights(spread))

    def _fill_packed(self, module: str, scheme: Scheme, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> None:
        spread = shape[1] ** -0.5  # standard deviation of the weights
        if scheme.name == "nl4":
            self._tile(stored[f"{module}.weight_codes"], self._bytes)
            scale = self._scaled(127.0, torch.int8)
            self._tile(stored[f"{module}.weight_scale"], scale)
            row_scale = spread / (_rms(nl4.table_tensor().float()) * _rms(scale.float()))
            stored[f"{module}.weight_row_scale"].fill_(row_scale)
        elif scheme.name == "nf4":
            self._tile(stored[f"{module}.weight"], self._bytes)
            level = _rms(torch.tensor(nf4.QUANT_MAP))
            self._tile(
                stored[f"{module}.weight.absmax"],
                self._scaled(spread / (level * self._scales_rms), torch.float32).abs(),
            )
            stored[f"{module}.weight.quant_map"].copy_(torch.tensor(nf4.QUANT_MAP))
            state = nf4.State(shape, scheme.group_size, torch.bfloat16).to_json()
            stored[f"{module}.{nf4.STATE}"].copy_(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        else:
            self._tile(stored[f"{module}.weight_packed"].view(torch.uint8), self._bytes)
            level = _rms(torch.arange(2.0**scheme.bits) - 2.0 ** (scheme.bits - 1))
            self._tile(
                stored[f"{module}.weight_scale"],
                self._scaled(spread / (level * self._scales_rms), torch.bfloat16),
            )
            stored[f"{module}.weight_shape"].copy_(torch.tensor(shape))

    def _weights(self, spread: float) -> Tensor:
        """Return normally distributed bfloat16 weights."""
        if self._normal is None:
            self._normal = torch.empty(_BLOCK).normal_(generator=self._generator)
        return self._once(torch.bfloat16, spread, self._normal)

    def _scaled(self, factor: float, dtype: torch.dtype) -> Tensor:
        """Return group scales of both signs, from 0.6 to 1 times `factor`."""
        return self._once(dtype, factor, self._scales)

    def _once(self, dtype: torch.dtype, factor: float, block: Tensor) -> Tensor:
        key = (dtype, factor * (1 if block is self._scales else -1))
        if key not in self._made:
            self._made[key] = (block * factor).to(dtype)
        return self._made[key]

    def _tile(self, target: Tensor, block: Tensor) -> None:
        flat, length = target.view(-1), len(block)
        start = self._taken % length
        self._taken += len(flat)
        head, rest = flat[: length - start], flat[length - start :]
        head.copy_(block[start : start + len(head)])
        whole = len(rest) // length * length
        rest[:whole].view(-1, length).copy_(block)  # torch shares the copy, and the first touch, among its threads
        rest[whole:].copy_(block[: len(rest) - whole])


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
