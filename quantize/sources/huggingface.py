"""A Hugging Face safetensors folder as a source.

Contract: any sharding, bf16, fp16 or fp32, transformers' per-expert and fused expert names: all that `ModelFolder`
reads unquantized. A folder that is quantized already is refused: its errors would be hidden in the new one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, StorageError, printable
from mixq.formats.folder import ModelFolder

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

SAMPLES = 64
SAMPLE_BYTES = 4096


class HuggingFaceSource:
    """An unquantized Hugging Face folder.

    Raises:
        ModelFileError: missing, damaged, of an architecture that mixq does not know, or quantized already.
    """

    def __init__(self, path: Path) -> None:
        self._folder = ModelFolder.open(path)
        if self._folder.quantization is not None:
            raise ModelFileError(
                f"{printable(path)} is quantized already ({self._folder.quantization.method}).",
                hint="Give the original checkpoint in bf16, fp16 or fp32.",
            )

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def config(self) -> ModelConfig:
        return self._folder.config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return self._folder.raw_config

    @property
    def nbytes(self) -> int:
        return self._folder.nbytes

    def tensor(self, name: str) -> Tensor:
        return self._folder.tensor(name)

    def fingerprint(self) -> str:
        """Hash config.json and, of every shard, its size, header and 64 samples of 4 KiB.

        A download repeated or moved keeps its fingerprint, another training of the same model changes it; reading all
        of Mixtral's 93 GB at every start would take minutes.
        """
        digest = hashlib.sha256()
        try:
            digest.update((self.path / "config.json").read_bytes())
            for shard in self._folder.shards:
                size = shard.stat().st_size
                digest.update(f"\0{shard.name}\0{size}\0".encode())
                with shard.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    digest.update(file.read(length))
                    for i in range(SAMPLES):
                        file.seek(8 + length + (size - 8 - length) * i // SAMPLES)
                        digest.update(file.read(SAMPLE_BYTES))
        except OSError as error:
            raise StorageError(f"{printable(self.path)} cannot be read: {printable(error)}.") from error
        return digest.hexdigest()

    def side_files(self) -> list[Path]:
        return [self.path / name for name in SIDE_FILES if (self.path / name).is_file()]
