"""The common part of GPTQ and AWQ checkpoints: groups with zero points, packed into int32 words, stored [in, out].

Contract: W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g] with g the group of column k; codes and zeros are unsigned.
A linear layer, or the router, is packed if it has `.qweight` instead of `.weight`. Opening a source checks that exactly
the tensors of the architecture exist, with the right dtypes and shapes; values are read one linear layer at a time, and
a damaged one is a ModelFileError. `gptq` and `awq` define the order of codes in words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mixq.errors import Fields, ModelFileError
from mixq.formats import int_groups
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.json_file import parse_json_object
from mixq.formats.layout import FLOAT_DTYPES, HARMLESS
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.formats.weights import StoredTensors
from mixq.quantize.sources.column_groups import Grouping, dequantize
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import CONFIG, StoredSource, already_quantized

Specs = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
"""{suffix: (dtypes allowed, shape)} of a packed layer."""


class ColumnPackedSource(StoredSource):
    """A checkpoint in GPTQ's or AWQ's format; `files` hold the tensors.

    Raises:
        ModelFileError: damaged, incomplete, or in an unsupported layout.
    """

    method: str
    """The format's name in reports."""

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str]) -> None:
        raw = parse_json_object(place.read(CONFIG), CONFIG)
        quantization = Fields(raw, "config.json: ").object("quantization_config")
        del raw["quantization_config"]
        super().__init__(place, stored, (CONFIG, *files), raw)
        self.itemsize = 4
        self.notices = (already_quantized(self.method),)
        self._grouping = self._read_grouping(quantization)
        self._linears: dict[str, tuple[int, int]] = {}
        self._biases: set[str] = set()
        self._kept: dict[str, Scheme | None] = {}
        self._check()

    @abstractmethod
    def _read_grouping(self, fields: Fields) -> Grouping:
        """Check quantization_config; raises ModelFileError."""

    @abstractmethod
    def _specs(self, module: str, shape: tuple[int, int]) -> Specs:
        """Return the tensors of a packed linear layer [N, K], `scales` among them."""

    @abstractmethod
    def _codes(self, module: str) -> Tensor:
        """Return a linear layer's codes: uint8 [N, K]."""

    @abstractmethod
    def _zeros(self, module: str) -> Tensor:
        """Return its zero points: uint8 [N, G]."""

    def _scales(self, module: str) -> Tensor:
        """Return its scales: [N, G]."""
        return self._stored.tensor(f"{module}.scales").T

    def _groups(self, module: str) -> Tensor:
        """Return the group of each column: int64 [K], each in 0..G-1; ModelFileError for others."""
        return self._grouping.trivial(self._linears[module][1])

    def tensor(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        self._refuse_bias(module)
        if module not in self._linears:
            return self._stored.tensor(name)
        return dequantize(self._codes(module), self._zeros(module), self._scales(module), self._groups(module))

    def kept(self, parameter: Parameter) -> Scheme | None:
        module = parameter.module
        return self._kept_scheme(module) if module in self._linears else None

    def packed(self, module: str) -> PackedLinear:
        N, K = self._linears[module]
        scheme = self._kept_scheme(module)
        if scheme is None:
            raise KeyError(module)
        self._refuse_bias(module)
        scales = self._scales(module)
        if not bool(torch.isfinite(scales).all()):
            raise ModelFileError(
                f"{module}.scales has values that are NaN or infinite.",
                hint="The checkpoint is damaged: download it again.",
            )
        size = scheme.group_size
        scales = scales.repeat_interleave(self._grouping.width(K) // size, dim=1)[:, : K // size]
        q = (self._codes(module) - (1 << (scheme.bits - 1))).view(torch.int8)  # uint8 wraps to two's complement
        return PackedLinear(scheme, (N, K), int_groups.pack(q, scales, scheme.bits))

    def _kept_scheme(self, module: str) -> Scheme | None:
        """Decide from shapes, groups and zero points, which are small compared with the codes; called once per
        layer."""
        if module not in self._kept:
            scheme = self._grouping.kept_scheme(self._linears[module][1])
            keeps = scheme is not None and self._one_scale_dtype(module) and self._is_symmetric(module)
            self._kept[module] = scheme if keeps else None
        return self._kept[module]

    def _one_scale_dtype(self, module: str) -> bool:
        """Return whether the scales have the dtype of the source's first ones."""
        first = self._stored.entry(f"{next(iter(self._linears))}.scales")
        entry = self._stored.entry(f"{module}.scales")
        return first is not None and entry is not None and entry.dtype == first.dtype

    def _is_symmetric(self, module: str) -> bool:
        """Return whether groups are neighbouring columns, and every zero point is in the middle."""
        middle = 1 << (self._grouping.bits - 1)
        trivial = self._grouping.trivial(self._linears[module][1])
        return torch.equal(self._groups(module), trivial) and bool((self._zeros(module) == middle).all())

    def _check(self) -> None:
        used = {name for name in self._stored.names if HARMLESS.fullmatch(name)}
        if self.config.tie_word_embeddings:
            used.add("lm_head.weight")
        for parameter in parameters(self.config):
            for name, (dtypes, shape) in self._specs_of(parameter).items():
                self._expect(name, dtypes, shape)
                used.add(name)
        self._refuse_others(used)
        if not self._linears:
            raise ModelFileError(f"config.json says {self.method}, but no linear layer is packed: there is no qweight.")
        if self.path is not None:  # on a hub each would be a request: they are read with their layer
            for module in self._biases:
                self._refuse_bias(module)

    def _specs_of(self, parameter: Parameter) -> Specs:
        """Return the stored tensors of a parameter by name, and remember which linear layers are packed or have a
        bias."""
        module = parameter.module
        if not (parameter.quantizable or parameter.role == "router"):
            return {parameter.name: (FLOAT_DTYPES, parameter.shape)}
        N, K = parameter.shape
        specs: Specs = {"weight": (FLOAT_DTYPES, (N, K))}
        if self._stored.entry(f"{module}.qweight") is not None:
            specs = self._specs(module, (N, K))
            self._linears[module] = (N, K)
        if self._stored.entry(f"{module}.bias") is not None:
            specs["bias"] = (FLOAT_DTYPES, (N,))
            self._biases.add(module)
        return {f"{module}.{suffix}": spec for suffix, spec in specs.items()}

    def _refuse_bias(self, module: str) -> None:
        """Refuse a bias that is not zero: the network has none; some exporters write zeros for every layer."""
        if module in self._biases and bool(self._stored.tensor(f"{module}.bias").any()):
            raise ModelFileError(f"{module}.bias is not zero; the linear layers of this architecture have no bias.")


def read_group_size(fields: Fields, name: str) -> int:
    """Return a group size, -1 for one group a row; raises ModelFileError."""
    if fields.values.get(name) == -1:
        return -1
    return fields.integer(name, 1, 2**31 - 1, allowed="a positive size, or -1 for one group a row")
