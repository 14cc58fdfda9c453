"""A checkpoint in Hugging Face's names as a source: safetensors or, where that was allowed, pickled files.

Contract: any sharding, bf16, fp16 or fp32, transformers' per-expert and fused expert names: all that a `Layout` reads.
Folders that bitsandbytes (nf4) or compressed-tensors (int4 and int8 groups) have packed are dequantized, with a notice;
a Linear packed as w4 or w8 can be kept as it is. The caller decides whether a folder of this project may be a source:
quantizing what was quantized would hide its errors in the new one's.
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
from mixq.formats.stored import StoredTensors
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import CONFIG, StoredSource, already_quantized


class HuggingFaceSource(StoredSource):
    """A checkpoint in Hugging Face's names; `files` hold the tensors.

    Raises:
        ModelFileError: damaged, incomplete, of an architecture that mixq does not know, or packed in a way that it does
            not read.
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
        """Return the scheme in which the folder has a Linear; None for a plain tensor."""
        packed = self._layout.packed.get(parameter.module)
        return None if packed is None else packed.scheme

    def packed(self, module: str) -> PackedLinear:
        return self._layout.packed_linear(module)
