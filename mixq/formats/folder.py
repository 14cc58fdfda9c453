"""An open model folder: checked against its config, its tensors mapped.

Contract: `ModelFolder.open` reads config.json and the shards' headers, and checks (`layout`) that every tensor of
the architecture is present with its dtype and shape, packed as `quantization_config` says, and nothing else. Tensors
are returned as views. Names can be transformers' per-expert names, its fused expert tensors, or those of packed linear
layers. Nothing is dequantized here, except a router that another tool has packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import Fields, ModelFileError, printable
from mixq.formats.json_file import read_json_object
from mixq.formats.layout import Layout
from mixq.formats.mapped import MappedShard
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.shards import ShardSet, no_model_hint

CONFIG_LIMIT = 1 << 20
SENTENCEPIECE = "tokenizer.model"
TOKENIZERS = (SENTENCEPIECE, "tokenizer.json")
"""Tokenizer files; the first one found is used."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelFolder:
    """An open model folder."""

    path: Path
    config: ModelConfig
    raw_config: dict[str, Any]  # config.json as parsed
    quantization: QuantizationConfig | None  # None for an unquantized folder
    tokenizer_path: Path | None  # tokenizer.model, else tokenizer.json, else None
    generation_config: dict[str, Any]  # generation_config.json, or empty
    eos_token_ids: tuple[int, ...]  # end tokens of generation_config.json if it has any, else of config.json
    _shards: ShardSet
    _layout: Layout

    @classmethod
    def open(cls, path: Path | str) -> ModelFolder:
        """Open and check a model folder.

        Raises:
            ModelFileError: something is missing, damaged or unknown, or has another shape or dtype.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelFileError(f"{printable(path)} is not a folder.")
        if not (path / "config.json").exists():
            raise ModelFileError(f"{printable(path)} has no config.json.", hint=no_model_hint(path))
        raw = read_json_object(path / "config.json", CONFIG_LIMIT)
        config = ModelConfig.from_dict(raw)
        quantization = QuantizationConfig.parse(raw.get("quantization_config"))
        shards = ShardSet.open(path)
        layout = Layout(config, quantization, shards)
        generation = path / "generation_config.json"
        generation_config = read_json_object(generation, CONFIG_LIMIT) if generation.exists() else {}
        return cls(
            path=path,
            config=config,
            raw_config=raw,
            quantization=quantization,
            tokenizer_path=tokenizer_file(path),
            generation_config=generation_config,
            eos_token_ids=Fields(generation_config, "generation_config.json: ").integers(
                "eos_token_id",
                0,
                config.vocab_size - 1,
                default=config.eos_token_ids,
                allowed=f"token ids below {config.vocab_size}",
            ),
            _shards=shards,
            _layout=layout,
        )

    @property
    def mapped(self) -> tuple[MappedShard, ...]:
        """The mappings of which tensors are views."""
        return self._shards.shards

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._shards.nbytes

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its per-expert name, such as `model.norm.weight`, as a view.

        Raises:
            KeyError: the model has no such tensor, or it is packed (see `linear`).
        """
        if name in self._layout.plain:
            return self._layout.tensor(name)
        module = name.removesuffix(".weight")
        if module.endswith(".gate") and module in self._layout.packed:
            # Folders written by transformers 4 with bitsandbytes have packed routers; a router is small, so it is
            # unpacked.
            return self._layout.packed_linear(module).dequantize()
        raise KeyError(name)

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a linear layer's weight [N, K] by the linear layer's name: a view, or its packed tensors."""
        if module in self._layout.packed:
            return self._layout.packed_linear(module)
        return self.tensor(f"{module}.weight")


def tokenizer_file(folder: Path) -> Path | None:
    """Return a folder's tokenizer file: tokenizer.model, else tokenizer.json, else None."""
    found = (folder / name for name in TOKENIZERS if (folder / name).is_file())
    return next(found, None)
