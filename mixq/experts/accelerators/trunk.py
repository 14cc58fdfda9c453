"""A model's weights with the trunk (the weights outside the experts) in an accelerator's memory.

Contract: `Trunk` has the tensors of the folder. They are copied to the accelerator when they are first read; only the
embedding stays in host memory, since a token needs one row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.experts.accelerators.interface import Accelerator
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.packed import PackedLinear
from mixq.formats.weights import Tensors

ALIGNMENT = 256


class Trunk:
    """`mixq.formats.weights.Tensors` of a folder, on an accelerator."""

    def __init__(self, folder: Tensors, accelerator: Accelerator) -> None:
        self.config = folder.config
        self._folder = folder
        self._accelerator = accelerator
        self._linears: dict[str, Tensor | PackedLinear] = {}
        self._tensors: dict[str, Tensor] = {}

    def load(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Copy everything now; `progress` is called with the share of the tensors done.

        Raises:
            OutOfMemory: it does not fit.
        """
        wanted = list(_trunk(self.config))
        for done, parameter in enumerate(wanted, 1):
            if parameter.quantizable:
                self.linear(parameter.module)
            else:
                self.tensor(parameter.name)
            progress(done / len(wanted))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the trunk on the accelerator; the embedding in host memory."""
        if name == "model.embed_tokens.weight":
            return self._folder.tensor(name)
        if name not in self._tensors:
            self._tensors[name] = self._copied(self._folder.tensor(name))
        return self._tensors[name]

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a linear layer of the trunk on the accelerator; for a tied embedding, the copy for the head."""
        if module not in self._linears:
            weight = self._folder.linear(module)
            if isinstance(weight, PackedLinear):
                tensors = {suffix: self._copied(tensor) for suffix, tensor in weight.tensors.items()}
                table = None if weight.table is None else weight.table.to(self._accelerator.device)
                self._linears[module] = PackedLinear(weight.scheme, weight.shape, tensors, table)
            else:
                self._linears[module] = self._copied(weight)
        return self._linears[module]

    def _copied(self, tensor: Tensor) -> Tensor:
        memory = self._accelerator.allocate(_padded(tensor.nbytes))[: tensor.nbytes]
        source = tensor.contiguous().view(-1).view(torch.uint8)
        self._accelerator.upload(memory, source).wait()
        return memory.view(tensor.dtype).view(tensor.shape)


def trunk_bytes(folder: Tensors) -> int:
    """Return the bytes of the trunk on an accelerator."""
    total = 0
    for parameter in _trunk(folder.config):
        weight = folder.linear(parameter.module) if parameter.quantizable else folder.tensor(parameter.name)
        tensors = weight.tensors.values() if isinstance(weight, PackedLinear) else (weight,)
        total += sum(_padded(tensor.nbytes) for tensor in tensors)
    return total


def _trunk(config: ModelConfig) -> Iterator[Parameter]:
    """Yield the weights that every token uses; a tied embedding is the head."""
    for parameter in parameters(config):
        if parameter.role != "expert" and (parameter.role != "embedding" or config.tie_word_embeddings):
            yield parameter


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
