"""The interface of a checkpoint of any format, as a job uses it.

Contract: names and shapes are those of `mixq.formats.architecture` for the source's config, and opening a source
checks that all of them exist; a tensor is returned as a view or read on demand, one at a time, from any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, printable
from mixq.formats.architecture import Parameter
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.formats.weights import StoredTensors
from mixq.quantize.sources.place import Place

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
"""Files that are copied unchanged, if they exist."""


class Source(ABC):
    """A checkpoint to quantize.

    Attributes:
        name: for reports and mixq.json; not a local path.
        raw_config: its config.json with Hugging Face's keys, for all formats; without quantization_config.
        config: its shape.
        nbytes: bytes of its tensors.
        path: the local folder or file; None if it is not local.
        revision: the commit of a repository on a hub; None for local sources.
        itemsize: bytes of a weight as `tensor` returns it: 4 if it is dequantized.
        notices: for the user before the job starts, such as an earlier quantization; one sentence each.
    """

    def __init__(
        self,
        name: str,
        raw_config: dict[str, Any],
        nbytes: int,
        *,
        path: Path | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.raw_config: Mapping[str, Any] = raw_config
        self.config = ModelConfig.from_dict(raw_config)
        self.nbytes = nbytes
        self.path = path
        self.revision = revision
        self.itemsize = 4 if self.config.dtype == "float32" else 2
        self.notices: tuple[str, ...] = ()

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its per-expert name (`Parameter.name`); bfloat16, float16 or float32.

        Quantized tensors are dequantized. The result may be a view, which must not be changed.

        Raises:
            StorageError: it cannot be read.
            ModelFileError: the data is damaged.
        """

    def kept(self, parameter: Parameter) -> Scheme | None:
        """Return the scheme, w4 or w8, in which `packed` returns this linear layer without loss; None if it cannot."""
        return None

    def packed(self, module: str) -> PackedLinear:
        """Return a linear layer for which `kept` has a scheme, unchanged, by its name without ".weight".

        The scales are float16 or bfloat16, the same in all of a source.
        """
        raise KeyError(module)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash that changes when the weights change, fast enough to compute at every start."""

    @abstractmethod
    def side_files(self) -> Mapping[str, bytes]:
        """Return the files, by name, that are copied unchanged: tokenizer, generation_config.json, licence."""

    def cancel(self) -> None:  # noqa: B027  (most sources never wait)
        """End waiting reads, for example from a network, with an error; called from another thread.

        The source cannot be read afterwards.
        """


class StoredSource(Source):
    """A source whose tensors are in files at a place.

    Args:
        place: where config and tokenizer are.
        stored: its tensors.
        files: the files with the weights, for the fingerprint.
        raw_config: see `Source`.
    """

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str], raw_config: dict[str, Any]) -> None:
        super().__init__(place.name, raw_config, stored.nbytes, path=place.path, revision=place.revision)
        self._place = place
        self._stored = stored
        self._files = files

    def fingerprint(self) -> str:
        return self._place.fingerprint(self._files)

    def side_files(self) -> dict[str, bytes]:
        return {name: self._place.read(name) for name in SIDE_FILES if name in self._place.files}

    def cancel(self) -> None:
        self._place.cancel()

    def _expect(self, name: str, dtypes: Sequence[torch.dtype], shape: tuple[int, ...]) -> None:
        """Refuse a tensor that is missing, or has another shape or dtype."""
        entry, config = self._stored.entry(name), self._files[0]
        if entry is None:
            raise ModelFileError(f"tensor {name!r} is missing.", hint="Finish the download, or download it again.")
        where = f"{printable(self._stored.file_of(name))}: tensor {name!r}"
        if entry.shape != shape:
            raise ModelFileError(f"{where} has shape {list(entry.shape)}; {config} asks for {list(shape)}.")
        if entry.dtype not in dtypes:
            found, *allowed = (str(dtype).removeprefix("torch.") for dtype in (entry.dtype, *dtypes))
            raise ModelFileError(f"{where} is {found}; it must be {', '.join(allowed)}.")

    def _refuse_others(self, used: Container[str]) -> None:
        """Refuse tensors that do not belong to a parameter."""
        for name in self._stored.names:
            if name not in used:
                raise ModelFileError(
                    f"{printable(self._stored.file_of(name))}: tensor {printable(name)!r} is not part of the "
                    f"{self.config.architecture} that {self._files[0]} describes."
                )


def already_quantized(method: str) -> str:
    """Return the notice for a source that is already quantized."""
    return (
        f"the source is quantized already ({method}): its weights are dequantized first. Precision already lost cannot "
        "be recovered; errors are relative to the quantized source."
    )
