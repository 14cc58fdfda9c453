"""Finds each parameter of a model among the stored tensors, and checks that all fit.

Contract: `Layout` maps every parameter of the architecture to one stored tensor, to rows of a fused expert tensor, or
to the tensors of a packed linear layer, checks dtypes and shapes against config.json, and refuses
other tensors. Values are not read, except `weight_shape` and nf4's state, which describe other tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, printable
from mixq.formats import int_groups, nf4, nl4
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.packed import PackedLinear, tensor_specs
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.formats.weights import StoredTensors

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HARMLESS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")
"""Tensors of older checkpoints that newer ones compute instead of storing them."""

_EXPERT = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])")
_ROUTER = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.gate")


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed linear layer: its scheme, its shape [N, K] and the suffixes of its stored tensors."""

    scheme: Scheme
    shape: tuple[int, int]
    suffixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """The place of an unquantized tensor: a stored tensor, or rows of a fused one (as a matrix of its last axis)."""

    stored: str
    rows: tuple[int, int] | None = None


class Layout:
    """Maps each parameter of the architecture to the stored tensors, and checks them.

    Attributes:
        plain: unquantized tensors, by parameter name.
        packed: packed linear layers, by module name.

    Raises:
        ModelFileError: a tensor is missing, has another dtype or shape, or is not part of the model.
    """

    def __init__(self, config: ModelConfig, quantization: QuantizationConfig | None, shards: StoredTensors) -> None:
        self.config = config
        self.quantization = quantization
        self.shards = shards
        self.plain: dict[str, Slice] = {}
        self.packed: dict[str, Packed] = {}
        self._used: set[str] = set()
        self._check()

    def _check(self) -> None:
        for parameter in parameters(self.config):
            scheme = self._scheme_of(parameter)
            if scheme is None:
                self._check_plain(parameter)
            else:
                self._check_packed(parameter, scheme)
        for name in self.shards.names:
            if name in self._used or HARMLESS.fullmatch(name):
                continue
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            raise ModelFileError(
                f"{self._where(name)}: tensor {name!r} is not part of a {self.config.architecture} "
                "of the shape and quantization that config.json describes."
            )

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its per-expert name; KeyError if there is none, or if it is packed."""
        place = self.plain[name]
        if place.rows is None:
            return self.shards.tensor(place.stored)
        return self.shards.rows(place.stored, *place.rows)

    def packed_linear(self, module: str) -> PackedLinear:
        """Return a packed linear layer by its name; KeyError where there is none."""
        packed = self.packed[module]
        table = None
        if packed.scheme.name == "nl4" and self.quantization is not None:
            table = nl4.table_tensor(self.quantization.table)
        tensors = {suffix: self.shards.tensor(f"{module}.{suffix}") for suffix in packed.suffixes}
        return PackedLinear(packed.scheme, packed.shape, tensors, table)

    def _where(self, name: str) -> str:
        return printable(self.shards.file_of(name))

    def _scheme_of(self, parameter: Parameter) -> Scheme | None:
        if self.quantization is None or not (parameter.quantizable or parameter.role == "router"):
            return None
        scheme = self.quantization.scheme_for(parameter.module)
        if self.quantization.method == "bitsandbytes":
            return scheme if self.shards.entry(f"{parameter.name}.absmax") else None
        if parameter.role == "router" and self.shards.entry(parameter.name) is not None:
            return None  # "Linear" as a target means the router in transformers 4, but not in 5
        return scheme

    def _check_plain(self, parameter: Parameter) -> None:
        place, stored_shape = Slice(parameter.name), parameter.shape
        if self.shards.entry(parameter.name) is None:
            place, stored_shape = self._fused(parameter) or (place, stored_shape)
        self._expect(place.stored, FLOAT_DTYPES, stored_shape)
        self.plain[parameter.name] = place

    def _fused(self, parameter: Parameter) -> tuple[Slice, tuple[int, ...]] | None:
        """Return the place of a parameter in transformers 5's fused expert tensors, and the fused tensor's shape."""
        E, F, D = self.config.num_local_experts, self.config.intermediate_size, self.config.hidden_size
        if router := _ROUTER.fullmatch(parameter.module):
            return Slice(f"{router[1]}.mlp.gate.weight"), parameter.shape
        expert = _EXPERT.fullmatch(parameter.module)
        if expert is None or self.shards.entry(f"{expert[1]}.mlp.experts.gate_up_proj") is None:
            return None
        prefix, number, matrix = f"{expert[1]}.mlp.experts", int(expert[2]), expert[3]
        if matrix == "w2":
            return Slice(f"{prefix}.down_proj", (number * D, number * D + D)), (E, D, F)
        first = (2 * number + (matrix == "w3")) * F
        return Slice(f"{prefix}.gate_up_proj", (first, first + F)), (E, 2 * F, D)

    def _expect(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> torch.dtype:
        entry = self.shards.entry(name)
        if entry is None:
            raise ModelFileError(
                f"tensor {name!r} is missing.", hint="The folder is incomplete: download or quantize it again."
            )
        if entry.shape != shape:
            raise ModelFileError(
                f"{self._where(name)}: tensor {name!r} has shape {list(entry.shape)}; "
                f"config.json asks for {list(shape)}."
            )
        if entry.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ModelFileError(
                f"{self._where(name)}: tensor {name!r} is {str(entry.dtype).removeprefix('torch.')}; "
                f"it must be {allowed}."
            )
        self._used.add(name)
        return entry.dtype

    def _check_packed(self, parameter: Parameter, scheme: Scheme) -> None:
        module, shape = parameter.module, (parameter.shape[0], parameter.shape[1])
        if scheme.name == "nf4":
            self._check_nf4(module, shape, scheme)
            return
        if not scheme.fits(shape):
            raise ModelFileError(
                f"config.json packs {module} as {scheme}, but its {shape[1]} inputs are not a multiple of the group "
                "size."
            )
        scale_dtype = torch.bfloat16
        if scheme.name in ("w4", "w8"):
            size = (shape[0], shape[1] // scheme.group_size)
            scale_dtype = self._expect(f"{module}.weight_scale", int_groups.SCALE_DTYPES, size)
        specs = tensor_specs(scheme, shape, scale_dtype)
        for suffix, (dtype, wanted) in specs.items():
            self._expect(f"{module}.{suffix}", (dtype,), wanted)
        if "weight_shape" in specs:
            stored = self.shards.tensor(f"{module}.weight_shape").tolist()
            if stored != list(shape):
                raise ModelFileError(
                    f"{module}.weight_shape is {printable(stored)}; by config.json it must be {list(shape)}."
                )
        self.packed[module] = Packed(scheme, shape, tuple(specs))

    def _check_nf4(self, module: str, shape: tuple[int, int], scheme: Scheme) -> None:
        known = (nf4.STATE, "weight", "weight.absmax", "weight.quant_map", *nf4.NESTED)
        suffixes = [suffix for suffix in known if self.shards.entry(f"{module}.{suffix}") is not None]
        self._used.update(f"{module}.{suffix}" for suffix in suffixes)
        try:
            state = nf4.read_state({suffix: self.shards.tensor(f"{module}.{suffix}") for suffix in suffixes})
        except ModelFileError as error:
            raise ModelFileError(f"{module}: {error.message}", hint=error.hint) from None
        if state.shape != shape:
            raise ModelFileError(
                f"{module}: the nf4 state says {list(state.shape)}; by config.json it must be {list(shape)}."
            )
        own = self.quantization is not None and self.quantization.method == "mixq"
        if own and state.blocksize != scheme.group_size:
            raise ModelFileError(
                f"{module}: the nf4 state has blocks of {state.blocksize}, config.json says {scheme.group_size}."
            )
        self.packed[module] = Packed(Scheme("nf4", state.blocksize), shape, tuple(suffixes))
