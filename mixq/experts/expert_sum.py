"""The input of one layer's experts on both sides, and the weighted sum of what accelerator and CPU compute of them.

Contract: placement does not change the result. A row's experts are summed in the router's order wherever they were
computed, so a device whose kernels have the CPU's bits gives the CPU's bits. Where an expert is computed is decided
elsewhere.

Axes: T tokens, E experts, A active experts, D hidden, C groups of choices that are summed by themselves.
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
    """A layer's input, on the accelerator and, once `wait` has returned, in host memory.

    Attributes:
        on_device: x [T, D] and weights [T, A] as they were given.
        x, ids, weights: host copies, [T, D] and twice [T, A].
    """

    def __init__(self, off: ExpertOffload, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> None:
        self._off = off
        self.on_device = (x, topk_weights)
        self.ids = self.copy("ids", topk_ids)
        self.weights = self.copy("weights", topk_weights)
        self.x = self.copy("x", x)

    def copy(self, name: str, source: Tensor) -> Tensor:
        """Return a host copy of a tensor, to be read after `wait`."""
        target = self._off.host_rows(name, source)
        self._off.accelerator.to_host(source, target)
        return target

    def wait(self) -> None:
        """Return once every copy has arrived."""
        self._off.accelerator.hand_over().wait()


class ExpertSum:
    """The weighted sum of a layer's experts, from launches on the accelerator and work on the CPU.

    Each part is summed by the kernels over the experts that it computed, a row of zeros where there was none. With up
    to two experts a token any order of the parts has the bits of one sum; with more, each choice is summed by itself
    and the choices in the router's order.
    """

    def __init__(self, off: ExpertOffload, layer: int, copies: HostCopies) -> None:
        A = copies.ids.shape[1]
        self._off, self._layer, self._copies = off, layer, copies
        self._choices = [slice(0, A)] if A <= 2 else [slice(a, a + 1) for a in range(A)]
        self._parts: list[Launch | Tensor] = []

    def launch(self, places: Mapping[int, int], slots: list[int]) -> Launch:
        """Compute experts on the accelerator, in the background.

        Args:
            places: where in the layer's views each expert is.
            slots: acquired ones that the launch reads; released when it is done.
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
        """Return int64 [T, A]: where each chosen expert is, -1 for those that are computed elsewhere."""
        table = [places.get(expert, -1) for expert in range(self._off.store.experts)]
        return torch.tensor(table)[self._copies.ids]

    def _sums(self, kernels: Kernels, views: Sequence[Expert], x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return [C, T, D], the sum of each group of choices."""
        if len(self._choices) == 1:
            return kernels.experts(x, views, ids, weights)[None]
        # The kernels see every row of an expert each time: how they multiply depends on how many there are.
        alone = [torch.zeros_like(weights) for _ in self._choices]
        for choice, kept in zip(self._choices, alone, strict=True):
            kept[:, choice] = weights[:, choice]
        return torch.stack([kernels.experts(x, views, ids, kept) for kept in alone])
