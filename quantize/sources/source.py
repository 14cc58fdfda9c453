"""What a job needs of a checkpoint, whatever its format on disk.

Contract: names and shapes are those of `mixq.formats.architecture` for the source's config, and opening a source has
proved that every one of them is there; a tensor is handed out as a view or read on demand, one at a time, from any
thread. A source knows nothing of mixes or of the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.architecture import Parameter
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme


class Source(ABC):
    """A checkpoint to quantize."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it in reports and in mixq.json: no path of the user's machine."""

    @property
    def path(self) -> Path | None:
        """The folder or file in which it lies on this machine; None where it does not."""
        return None

    @property
    def revision(self) -> str | None:
        """The commit of a hub's repository; None for what lies on this machine."""
        return None

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Its shape."""

    @property
    @abstractmethod
    def raw_config(self) -> Mapping[str, Any]:
        """Its config.json, in Hugging Face's keys, whatever the source itself has; no quantization_config."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of its tensors."""

    @property
    def itemsize(self) -> int:
        """Bytes of a weight as `tensor` hands it out: 4 where it is dequantized."""
        return 4 if self.config.dtype == "float32" else 2

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of it before the job begins: what was quantized before, say; a sentence each."""
        return ()

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its per-expert name, as `Parameter.name` has it; bfloat16, float16 or float32.

        Quantized ones are dequantized. A view may be returned; the caller writes into none.

        Raises:
            StorageError: it cannot be read.
            ModelFileError: what was read is damaged.
        """

    def kept(self, parameter: Parameter) -> Scheme | None:
        """Return the scheme, w4 or w8, in which `packed` hands this Linear out without any loss, or None."""
        return None

    def packed(self, module: str) -> PackedLinear:
        """Return a Linear, by its name without ".weight", exactly as the source has it, for which `kept` has a scheme.

        The scales are float16 or bfloat16, the same for all of a source.
        """
        raise KeyError(module)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes when the weights do, cheap enough to ask for at every start."""

    @abstractmethod
    def side_files(self) -> Mapping[str, bytes]:
        """Return the files, by name, that go along unchanged: tokenizer, generation_config.json, licence."""

    def cancel(self) -> None:  # noqa: B027  (most sources never wait)
        """Make reads that wait for something, a network perhaps, end soon with an error; called from another thread.

        It is for good: the source is not read again.
        """
