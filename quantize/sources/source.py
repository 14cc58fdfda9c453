"""What a job needs of a checkpoint, whatever its format on disk.

Contract: names and shapes are those of `mixq.formats.architecture` for the source's config; a tensor is handed out as a
view or read on demand, one at a time. A source knows nothing of schemes or of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mixq.config import ModelConfig


class Source(Protocol):
    """A checkpoint to quantize."""

    @property
    def name(self) -> str:
        """What to call it in reports and in mixq.json: no path of the user's machine."""
        ...

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        ...

    @property
    def raw_config(self) -> Mapping[str, Any]:
        """Its config.json."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its per-expert name; bfloat16, float16 or float32."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes when the weights do, cheap enough to ask for at every start."""
        ...

    def side_files(self) -> list[Path]:
        """The files that go along unchanged: tokenizer, generation_config.json, licence."""
        ...
