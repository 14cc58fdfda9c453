"""The tensors of torch's pickled files (.bin, .pt, .pth).

Contract: read only by `torch.load(weights_only=True, mmap=True)`, whose unpickler builds tensors and plain containers
and runs no code; anything else in a file is refused. Tensors are views of the mapped files. torch before 2.10 is
refused: its restricted unpickler can be made to run code (CVE-2026-24747).
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.formats.header import NAME, TensorEntry

SAFE_TORCH = (2, 10)

_DAMAGED = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError)
"""The exceptions of torch's unpickler for a damaged pickle, besides those of struct and zipfile."""


class PickledTensors:
    """The tensors of one or more pickled files in a folder.

    Raises:
        UsageError: this torch is too old to read pickles safely.
        ModelFileError: a file is missing, damaged, or contains other things than named tensors.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        _refuse_old_torch()
        self._tensors: dict[str, Tensor] = {}
        self._files: dict[str, str] = {}
        for file in names:
            for name, tensor in _load(folder / file).items():
                if name in self._tensors:
                    raise ModelFileError(f"tensor {name!r} is in two files, {self._files[name]} and {file}.")
                self._tensors[name], self._files[name] = tensor, file

    @property
    def names(self) -> Collection[str]:
        return self._tensors.keys()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def entry(self, name: str) -> TensorEntry | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else TensorEntry(tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        return self._tensors[name].flatten(0, -2)[first:last]

    def file_of(self, name: str) -> str:
        return self._files[name]


def _refuse_old_torch() -> None:
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < SAFE_TORCH:
        raise UsageError(
            f"torch {torch.__version__} cannot read pickled files safely.",
            hint=f"Install torch {'.'.join(map(str, SAFE_TORCH))} or newer, or use a safetensors checkpoint.",
        )


def _load(path: Path) -> dict[str, Tensor]:
    shown = printable(path)
    if not path.is_file():
        raise ModelFileError(f"{shown} is missing.", hint="Finish the download.")
    try:
        if not zipfile.is_zipfile(path):  # torch before 1.6; it cannot be mapped
            raise ModelFileError(
                f"{shown} is truncated, or not a PyTorch file.",
                hint="Finish the download. A file written by torch before 1.6 must be loaded and saved again.",
            )
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ModelFileError(
                    f"{shown} was compressed after torch had written it.",
                    hint="Load it with torch and save it again, or download the original file.",
                )
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise StorageError(f"{shown} cannot be read: {printable(error)}.") from error
    except pickle.UnpicklingError:
        raise ModelFileError(
            f"{shown} contains objects other than tensors and was not loaded: it could run a program.",
            hint="Do not load it with another program, unless you know its content.",
        ) from None
    except (*_DAMAGED, struct.error, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{shown} is damaged: {printable(error, 200)}.") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ModelFileError(f"{shown} contains a {type(content).__name__}, not named tensors.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ModelFileError(f"{shown}: {printable(repr(name))} is not a tensor name.")
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or tensor.device.type != "cpu":
            raise ModelFileError(f"{shown}: {name!r} is not a plain tensor.")
    return {name: tensor.detach() for name, tensor in content.items()}
