"""A checkpoint with Hugging Face's names, as a source: safetensors or, if allowed, pickled files.

Contract: any sharding, bf16, fp16 or fp32, transformers' per-expert and fused expert names: all that a `Layout` reads.
Folders packed by bitsandbytes (nf4) or compressed-tensors (int4 and int8 groups) are dequantized, with a notice; linear
layers packed as w4 or w8 can be kept. The caller decides whether a folder written by mixq is allowed, because
quantizing twice would hide the errors of the first time.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixq.formats.architecture import Parameter
from mixq.formats.json_file import parse_json_object
from mixq.formats.layout import Layout
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.formats.weights import StoredTensors
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import CONFIG, StoredSource, already_quantized


class HuggingFaceSource(StoredSource):
    """A checkpoint with Hugging Face's names; `files` hold the tensors.

    Raises:
        ModelFileError: damaged, incomplete, or with an unsupported architecture or packing.
    """

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str]) -> None:
        raw = parse_json_object(place.read(CONFIG), CONFIG)
        packed = raw.pop("quantization_config", None)
        super().__init__(place, stored, (CONFIG, *files), raw)
        quantization = QuantizationConfig.parse(packed)
        if quantization is not None:
            self.itemsize = 4
            self.notices = (already_quantized(quantization.method),)
        self._layout = Layout(self.config, quantization, stored)

    def tensor(self, name: str) -> Tensor:
        if name in self._layout.plain:
            return self._layout.tensor(name)
        return self._layout.packed_linear(name.removesuffix(".weight")).dequantize()

    def kept(self, parameter: Parameter) -> Scheme | None:
        scheme = self.scheme_of(parameter)
        return scheme if scheme is not None and scheme.name in ("w4", "w8") else None

    def scheme_of(self, parameter: Parameter) -> Scheme | None:
        """Return a linear layer's scheme in the folder; None if it is unquantized."""
        packed = self._layout.packed.get(parameter.module)
        return None if packed is None else packed.scheme

    def packed(self, module: str) -> PackedLinear:
        return self._layout.packed_linear(module)
