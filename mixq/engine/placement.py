"""Where the parts of a loaded model are, and what computes them: the CPU alone, or CPU and accelerator.

Contract: `mixq.engine.loading.place` returns a `Placement`; the network is built from it and allocates memory with it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixq.config import format_size
from mixq.engine.host_weights import HostWeights
from mixq.errors import DoesNotFitError
from mixq.experts.accelerators.interface import Accelerator, OutOfMemory
from mixq.experts.executor import CpuExperts, Experts, LayerExperts
from mixq.experts.lookahead import Lookahead
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.offload import ExpertOffload
from mixq.experts.ram_tier import RamTier
from mixq.experts.telemetry import ExpertTelemetry
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.weights import Tensors, Weights
from mixq.kernels.dispatch import Kernels
from mixq.model.decode_step import Captures
from mixq.plan.shares import GPU, RAM, Shares

LOOKAHEAD = 2
"""Layers ahead whose experts are predicted, by their routers on the hidden state of this layer."""

GAP = 0.05
"""Warn when memory use exceeds the plan by more than this share."""


@dataclass(slots=True)
class Placement:
    """The devices that compute a model, and the places of its weights."""

    folder: Weights  # the weights in host memory
    weights: Tensors  # what the network is built from
    kernels: Kernels  # of the network
    host_kernels: Kernels  # of what is computed on the CPU
    shares: Shares  # the memory that the model is planned to take
    # accelerator, plan: None on the CPU alone
    accelerator: Accelerator | None = None
    plan: MemoryPlan | None = None
    offload: ExpertOffload | None = None  # the cache of experts on the accelerator; None without one
    tier: RamTier | None = None  # reads experts from the disk when they do not all fit into RAM; None when they do
    host: HostWeights | None = None  # which weights are in huge pages; None with an accelerator, a tier, or no files
    notes: list[str] = field(default_factory=list)  # one line for each option that could not be followed

    @property
    def device(self) -> str:
        """cpu, sim or cuda."""
        return "cpu" if self.accelerator is None else self.accelerator.name

    @property
    def weights_are(self) -> str:
        """How the weights are in host memory, as text."""
        if self.host is not None:
            return str(self.host)
        return "mapped from the disk, read as they are used" if isinstance(self.folder, ModelFolder) else "in memory"

    @property
    def telemetry(self) -> ExpertTelemetry | None:
        """Counts where experts are computed; None without a cache of experts."""
        return None if self.offload is None else self.offload.telemetry

    def experts(self, layer: int) -> Experts:
        """Return what computes the experts of a layer."""
        if self.offload is not None:
            return LayerExperts(self.offload, layer, self.lookahead(layer))
        # Nothing is predicted for the disk, where a wrong prediction costs a read: with predictions that are right in
        # 80 % of cases a token read 3.7 GB, without any 2.8 (tests/bench/ram_tier.py).
        return CpuExperts(self.folder, layer, self.host_kernels, tier=self.tier)

    def lookahead(self, layer: int) -> Lookahead:
        """Return the routers of the next layers."""
        config, tensor = self.weights.config, self.weights.tensor
        last = min(layer + LOOKAHEAD, config.num_hidden_layers - 1)
        prefixes = [f"model.layers.{i}" for i in range(layer + 1, last + 1)]
        routers = [
            (tensor(f"{prefix}.post_attention_layernorm.weight"), tensor(f"{prefix}.block_sparse_moe.gate.weight"))
            for prefix in prefixes
        ]
        return Lookahead(self.kernels, routers, config.rms_norm_eps, config.num_experts_per_tok)

    def captures(self) -> Captures | None:
        """Return what captures decode steps; None where the accelerator or the weights' kernels cannot be captured."""
        if self.accelerator is None or not self.accelerator.captures or not _without_reads(self.folder):
            return None
        return Captures(self.accelerator, self.offload, self.folder.config.is_moe)

    def give_back(self, error: OutOfMemory) -> None:
        """Free expert slots after an allocation on the accelerator has failed.

        Raises:
            DoesNotFitError: no slot is left to free.
        """
        if self.offload is None or not self.offload.make_room(error):
            raise DoesNotFitError(
                f"Out of GPU memory: {format_size(error.asked)} are needed.",
                hint="Close other programs, or use a smaller --context or --device cpu.",
            ) from error

    def allocate_rows(self, nbytes: int) -> Tensor:
        """Return memory for a KV cache where the network computes; it is freed with its last reference.

        Raises:
            DoesNotFitError: no memory is left, even after freeing expert slots.
        """
        if self.accelerator is None:
            return torch.empty(nbytes, dtype=torch.uint8)
        while True:
            try:
                memory = self.accelerator.allocate(nbytes)
            except OutOfMemory as error:
                self.give_back(error)
            else:
                view = memory[:]
                weakref.finalize(view, self.accelerator.release, memory)
                return view

    def planned(self) -> dict[str, int]:
        """Return the bytes of RAM, and of an accelerator's memory, that were planned."""
        planned = {"ram_planned_bytes": self.shares.total(RAM)}
        if self.accelerator is not None:
            planned["vram_planned_bytes"] = self.shares.total(GPU)
        return planned

    def gap(self, resident: int | None) -> str | None:
        """Return a warning when the process takes more RAM, `resident` bytes, than planned; else None."""
        planned = self.shares.total(RAM)
        if self.device == "sim":  # its memory is RAM too
            planned += self.shares.total(GPU)
        if resident is None or resident <= planned * (1 + GAP):
            return None
        return f"mixq uses {format_size(resident)} of RAM; {format_size(planned)} were planned."

    def as_dict(self) -> dict[str, Any]:
        """Return the device and the use of an accelerator's memory as plain data."""
        placed = {"device": self.device, **self.planned()}
        if self.host is not None:
            placed |= {"weights_mapped_huge_bytes": self.host.mapped, "weights_copied_huge_bytes": self.host.copied}
        if self.accelerator is None or self.plan is None:
            return placed
        memory = self.accelerator.memory
        return placed | {
            "vram_promised_bytes": memory.budget,
            "vram_taken_bytes": memory.taken,
            "vram_peak_bytes": memory.peak,
            "vram_kv_cache_bytes": self.plan.kv_cache,
            "vram_trunk_bytes": self.plan.trunk,
            "vram_workspace_bytes": self.plan.workspace + self.plan.staging,
            "expert_slots": self.offload.slots if self.offload is not None else 0,
            "miss": self.offload.scheduler.miss if self.offload is not None else None,
        }

    def close(self) -> None:
        if self.tier is not None:
            self.tier.close()
        if self.offload is not None:
            self.offload.close()
        if self.accelerator is not None:
            self.accelerator.close()


def _without_reads(folder: Weights) -> bool:
    """Return whether a GPU's decode step needs nothing from the host: nf4 and float32 have no decode kernels."""
    weights = [folder.linear(parameter.module) for parameter in parameters(folder.config) if parameter.quantizable]
    return all(
        weight.dtype == torch.bfloat16 if isinstance(weight, Tensor) else weight.scheme.name != "nf4"
        for weight in weights
    )
