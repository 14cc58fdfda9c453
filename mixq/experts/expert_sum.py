"""The input of a layer's experts on CPU and accelerator, and the weighted sum of their outputs.

Contract: placement does not change the result. A row's experts are summed in the router's order wherever they were
computed, so with bit-identical kernels the results are bit-identical.

Axes: T tokens, E experts, A active experts, D hidden, C groups of choices that are summed separately.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Launch
from mixq.experts.offload import ExpertOffload
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import Expert


class HostCopies:
    """A layer's input, on the accelerator and, after `wait`, in host memory.

    Attributes:
        on_device: the given x [T, D] and weights [T, A].
        x, ids, weights: host copies, [T, D], [T, A] and [T, A].
    """

    def __init__(self, off: ExpertOffload, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
        self._off = off
        self.on_device = (x, topk_weights)
        self.ids = self.copy("ids", topk_ids)
        self.weights = self.copy("weights", topk_weights)
        self.x = self.copy("x", x)

    def copy(self, name: str, source: Tensor) -> Tensor:
        """Return a host copy of a tensor, to read after `wait`."""
        target = self._off.host_rows(name, source)
        self._off.accelerator.to_host(source, target)
        return target

    def wait(self) -> None:
        """Wait until every copy is complete."""
        self._off.accelerator.hand_over().wait()


class ExpertSum:
    """The weighted sum of a layer's experts, from launches on the accelerator and work on the CPU.

    The kernels sum each part over the experts that it computed; rows without one are zero. With up to two experts per
    token, any order of the parts gives bit-identical sums; with more, each choice is summed separately, and the choices
    in the router's order.
    """

    def __init__(self, off: ExpertOffload, layer: int, copies: HostCopies) -> None:
        A = copies.ids.shape[1]
        self._off, self._layer, self._copies = off, layer, copies
        self._choices = [slice(0, A)] if A <= 2 else [slice(a, a + 1) for a in range(A)]
        self._parts: list[Launch | Tensor] = []

    def launch(self, places: Mapping[int, int], slots: list[int]) -> Launch:
        """Compute experts on the accelerator, in the background.

        Args:
            places: the index of each expert in the layer's views.
            slots: acquired slots that the launch reads; released when it is done.
        """
        ids = self._off.accelerator.to_device(self._ids(places))  # [T, A]
        views = self._off.memory.views(self._layer)
        x, weights = self._copies.on_device
        launch = self._off.accelerator.launch(lambda kernels: self._sums(kernels, views, x, ids, weights))
        self._parts.append(launch)
        self._off.release_after(launch, self._layer, slots)
        return launch

    def compute_on_cpu(self, experts: Sequence[int]) -> None:
        """Compute experts in host memory, now."""
        if not experts:
            return
        off, copies = self._off, self._copies
        off.read_in(self._layer, experts)
        begun = time.perf_counter()
        ids = self._ids({expert: expert for expert in experts})
        part = self._sums(off.host_kernels, off.store.layer(self._layer), copies.x, ids, copies.weights)
        self._parts.append(off.accelerator.to_device(part))
        off.telemetry.note_cpu(len(experts), len(copies.x), begun, time.perf_counter())

    def result(self) -> Tensor:
        """Return the sum [T, D]."""
        parts = [part if isinstance(part, Tensor) else part.result() for part in self._parts]  # each [C, T, D]
        together = parts[0]
        for part in parts[1:]:
            together = together + part
        total = together[0]
        for choice in together[1:]:
            total = total + choice
        return total

    def _ids(self, places: Mapping[int, int]) -> Tensor:
        """Return int64 [T, A]: the place of each chosen expert, -1 for those computed elsewhere."""
        table = [places.get(expert, -1) for expert in range(self._off.store.experts)]
        return torch.tensor(table)[self._copies.ids]

    def _sums(self, kernels: Kernels, views: Sequence[Expert], x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return [C, T, D], the sum of each group of choices."""
        if len(self._choices) == 1:
            return kernels.experts(x, views, ids, weights)[None]
        # The kernels get all rows of an expert each time, because the number of rows determines how they multiply.
        alone = [torch.zeros_like(weights) for _ in self._choices]
        for choice, kept in zip(self._choices, alone, strict=True):
            kept[:, choice] = weights[:, choice]
        return torch.stack([kernels.experts(x, views, ids, kept) for kept in alone])
