"""A checkpoint in Hugging Face's names as a source: safetensors or, where that was allowed, pickled files.

Contract: any sharding, bf16, fp16 or fp32, transformers' per-expert and fused expert names: all that a `Layout` reads.
Folders that bitsandbytes (nf4) or compressed-tensors (int4 and int8 groups) have packed are dequantized, and that is
said; a Linear packed as w4 or w8 can be kept as it is. Whether a folder of this project may be a source is the
caller's to say: quantizing what was quantized would hide its errors in the new one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.architecture import Parameter
from mixq.formats.json_file import parse_json_object
from mixq.formats.layout import Layout
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.formats.stored import StoredTensors
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import Source

CONFIG = "config.json"
SIDE_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
"""Files that are copied as they are, where they exist."""


class HuggingFaceSource(Source):
    """A checkpoint in Hugging Face's names.

    Args:
        place: where config.json and tokenizer lie.
        stored: its tensors.
        files: the files that hold them, for the fingerprint.

    Raises:
        ModelFileError: damaged, incomplete, of an architecture that mixq does not know, or packed in a way that it does
            not read.
    """

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str]) -> None:
        self._place = place
        self._stored = stored
        self._files = tuple(files)
        raw = parse_json_object(place.read(CONFIG), CONFIG)
        self._config = ModelConfig.from_dict(raw)
        self.quantization = QuantizationConfig.parse(raw.pop("quantization_config", None))
        self._raw = raw
        self._layout = Layout(self._config, self.quantization, stored)

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def path(self) -> Path | None:
        return self._place.path

    @property
    def revision(self) -> str | None:
        return self._place.revision

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return self._raw

    @property
    def nbytes(self) -> int:
        return self._stored.nbytes

    @property
    def itemsize(self) -> int:
        return super().itemsize if self.quantization is None else 4

    @property
    def notices(self) -> tuple[str, ...]:
        if self.quantization is None:
            return ()
        return (already_quantized(self.quantization.method),)

    def tensor(self, name: str) -> Tensor:
        if name in self._layout.plain:
            return self._layout.tensor(name)
        return self._layout.packed_linear(name.removesuffix(".weight")).dequantize()

    def kept(self, parameter: Parameter) -> Scheme | None:
        packed = self._layout.packed.get(parameter.module)
        return packed.scheme if packed is not None and packed.scheme.name in ("w4", "w8") else None

    def packed(self, module: str) -> PackedLinear:
        return self._layout.packed_linear(module)

    def fingerprint(self) -> str:
        return self._place.fingerprint([CONFIG, *self._files])

    def side_files(self) -> dict[str, bytes]:
        return side_files(self._place)

    def cancel(self) -> None:
        self._place.cancel()


def side_files(place: Place) -> dict[str, bytes]:
    """Return the tokenizer and the other files of a place that go along unchanged."""
    return {name: place.read(name) for name in SIDE_FILES if name in place.files}


def already_quantized(method: str) -> str:
    """Return what to say of a source that has been quantized before."""
    return (
        f"the source is quantized already ({method}): its weights are dequantized first. What that lost stays lost, "
        "and the errors reported are those beside it."
    )
