"""Where a model runs: on the CPU alone, or with its trunk on an accelerator and its experts shared between the two.

Contract: `place` follows the runtime options, reserves the accelerator's memory in the order KV cache, trunk, slots,
and measures the machine for the scheduler. Without an accelerator it chooses kernels and nothing else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.engine.progress import Progress
from mixq.errors import DoesNotFitError
from mixq.experts.accelerators.choose import choose_accelerator
from mixq.experts.accelerators.interface import Accelerator, OutOfMemory
from mixq.experts.accelerators.trunk import Trunk, trunk_bytes
from mixq.experts.cost import ModelCost
from mixq.experts.executor import CpuExperts, Experts, LayerExperts, Lookahead
from mixq.experts.memory_plan import MemoryPlan, plan_memory, workspace_bytes
from mixq.experts.offload import ExpertOffload
from mixq.experts.quota import Quotas
from mixq.experts.ram_tier import RamTier
from mixq.experts.spans import expert_spans
from mixq.experts.store import ExpertStore
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import why_no_advice
from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels, choose
from mixq.kernels.native_library import NativeKernels
from mixq.kernels.reference import DECODE_ROWS
from mixq.model.decode_step import Captures
from mixq.plan.shares import GPU, RAM, Shares, share_out
from mixq.plan.sizes import ModelSizes
from mixq.system.memory import available_memory

LOOKAHEAD = 2
"""Layers ahead whose routers are asked on today's hidden state."""

DISK_LOOKAHEAD = 0
"""The same for reading from the disk. A guess that is wrong costs a read, and the disk is what everybody waits for:
with guesses that are right in 80 % of cases a token read 3.7 GB, without any 2.8 (tests/bench/ram_tier.py)."""

GAP = 0.05
"""Beyond what was foretold, how much more is worth a word."""

LOCKED_SHARE = 0.9
"""Of the free memory, what may be locked for copies; the rest is for the system and other programs."""


@dataclass(slots=True)
class Placement:
    """What computes a model, and where its weights are.

    Attributes:
        folder: the weights in host memory.
        weights: what the network is built from.
        kernels: of the network.
        host_kernels: of what is computed on the CPU.
        accelerator, plan: None on the CPU alone.
        offload: None where there are no experts to cache.
        tier: reads experts from the disk where they do not all fit into memory; None where they do.
        shares: what this takes of RAM and of the accelerator's memory, foretold.
        notes: one line for each thing that is not as it was asked for.
    """

    folder: Weights
    weights: Weights
    kernels: Kernels
    host_kernels: Kernels
    accelerator: Accelerator | None = None
    plan: MemoryPlan | None = None
    offload: ExpertOffload | None = None
    tier: RamTier | None = None
    shares: Shares | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """cpu, sim or cuda."""
        return "cpu" if self.accelerator is None else self.accelerator.name

    def experts(self, layer: int) -> Experts:
        """Return what computes the experts of a layer."""
        if self.offload is not None:
            return LayerExperts(self.offload, layer, self._lookahead(layer, LOOKAHEAD))
        if self.tier is not None:
            return CpuExperts(
                self.folder, layer, self.host_kernels, tier=self.tier, lookahead=self._lookahead(layer, DISK_LOOKAHEAD)
            )
        return CpuExperts(self.folder, layer, self.host_kernels)

    def _lookahead(self, layer: int, ahead: int) -> Lookahead:
        """Return the routers of so many layers after this one."""
        config = self.weights.config
        prefixes = [f"model.layers.{i}" for i in range(layer + 1, min(layer + 1 + ahead, config.num_hidden_layers))]
        routers = [
            (
                self.weights.tensor(f"{prefix}.post_attention_layernorm.weight"),
                self.weights.tensor(f"{prefix}.block_sparse_moe.gate.weight"),
            )
            for prefix in prefixes
        ]
        return Lookahead(self.kernels, routers, config.rms_norm_eps, config.num_experts_per_tok)

    def captures(self) -> Captures | None:
        """Return what captures a decode step, where the accelerator can."""
        if self.accelerator is None or not self.accelerator.captures or not _without_reads(self.folder):
            return None
        return Captures(self.accelerator, self.offload, self.folder.config.is_moe)

    def give_back(self, error: OutOfMemory) -> None:
        """Free expert slots; see `mixq.model.mixtral.GiveBack`."""
        if self.offload is None or not self.offload.make_room(error):
            raise DoesNotFitError(
                f"The GPU has no memory left: {format_size(error.asked)} are needed.",
                hint="Close other programs, or give a smaller --context or --device cpu.",
            ) from error

    def allocate_rows(self, nbytes: int) -> Tensor:
        """Return memory for a KV cache where the network computes; it is given back when nobody refers to it.

        Raises:
            DoesNotFitError: no memory is left, not even by giving up expert slots.
        """
        if self.accelerator is None:
            return torch.empty(nbytes, dtype=torch.uint8)
        while True:
            try:
                memory = self.accelerator.allocate(nbytes)
                break
            except OutOfMemory as error:
                self.give_back(error)
        view = memory[:]
        weakref.finalize(view, self.accelerator.release, memory)
        return view

    def planned(self) -> dict[str, int]:
        """Return the bytes of RAM, and of an accelerator's memory, that were foretold."""
        if self.shares is None:
            return {}
        planned = {"ram_planned_bytes": self.shares.total(RAM)}
        if self.accelerator is not None:
            planned["vram_planned_bytes"] = self.shares.total(GPU)
        return planned

    def gap(self, resident: int | None) -> str | None:
        """Return what to say where more is taken than was foretold, `resident` bytes of RAM; None where not."""
        planned = self.planned()
        ram = planned.get("ram_planned_bytes", 0)
        if self.device == "sim":  # whose memory is RAM too
            ram += planned.get("vram_planned_bytes", 0)
        if resident is None or not ram or resident <= ram * (1 + GAP):
            return None
        return f"mixq has taken {format_size(resident)} of RAM; {format_size(ram)} were planned."

    def as_dict(self) -> dict[str, Any]:
        """Return the device, and what an accelerator's memory is used for, as plain data."""
        if self.accelerator is None or self.plan is None:
            return {"device": self.device, **self.planned()}
        memory = self.accelerator.memory
        return {
            "device": self.device,
            **self.planned(),
            "vram_promised_bytes": memory.promised,
            "vram_taken_bytes": memory.taken,
            "vram_peak_bytes": memory.peak,
            "vram_kv_cache_bytes": self.plan.kv_cache,
            "vram_trunk_bytes": self.plan.trunk,
            "vram_workspace_bytes": self.plan.workspace + self.plan.staging,
            "expert_slots": self.offload.slots if self.offload is not None else 0,
            "miss": self.offload.scheduler.miss if self.offload is not None else None,
        }

    def close(self) -> None:
        """End what runs in the background."""
        if self.tier is not None:
            self.tier.close()
        if self.offload is not None:
            self.offload.close()
        if self.accelerator is not None:
            self.accelerator.close()


def place(
    folder: Weights,
    options: RuntimeOptions,
    *,
    threads: int,
    kv_cache: int,
    rows: int,
    say: Callable[[str], None],
    progress: Progress = lambda what, share: None,
) -> Placement:
    """Return where a model runs.

    Args:
        folder: its weights.
        threads: of the CPU's kernels.
        kv_cache: bytes that the context takes.
        rows: tokens of the largest pass.
        say: takes a line that the user should see while the model runs.
        progress: is told how far the weights have come.

    Raises:
        UsageError: a device that this machine does not have.
        DoesNotFitError: the trunk does not fit into the memory promised.
    """
    notes: list[str] = []
    quotas = _quotas(options, folder.config)
    accelerator = choose_accelerator(options, threads, notes)
    if accelerator is None:
        return _on_cpu(folder, options, threads, kv_cache, [*notes, *_unused(options)])
    try:
        placement = on_accelerator(
            folder,
            options,
            accelerator,
            threads=threads,
            kv_cache=kv_cache,
            rows=rows,
            say=say,
            quotas=quotas,
            progress=progress,
        )
    except DoesNotFitError as error:
        accelerator.close()
        if options.device != "auto" or options.vram is not None:
            raise
        return _on_cpu(folder, options, threads, kv_cache, [*notes, f"the model runs on the CPU: {error.message}"])
    placement.notes[:0] = notes
    return placement


def _on_cpu(folder: Weights, options: RuntimeOptions, threads: int, kv_cache: int, notes: list[str]) -> Placement:
    kernels = choose(threads=threads, exact=options.exact)
    shares = _shares(folder, options, "cpu")
    tier = RamTier.open(folder, _budget(folder, options, shares, trunk_in_ram=True), reserved=kv_cache)
    if tier is not None:
        notes = [*notes, str(tier)]
    return Placement(folder, folder, kernels, kernels, tier=tier, shares=shares, notes=notes)


def on_accelerator(
    folder: Weights,
    options: RuntimeOptions,
    accelerator: Accelerator,
    *,
    threads: int,
    kv_cache: int,
    rows: int,
    say: Callable[[str], None],
    quotas: Quotas | None = None,
    progress: Progress = lambda what, share: None,
) -> Placement:
    """Return a model with its trunk on an accelerator; see `place`."""
    config = folder.config
    notes: list[str] = []
    store = ExpertStore(folder) if config.is_moe else None
    if store is not None and store.reason is not None:
        notes.append(f"{store.reason}: they are computed on the CPU.")
        store = None
    workspace = workspace_bytes(config, rows)
    plan = plan_memory(
        config,
        accelerator.memory.promised,
        kv_cache=kv_cache,
        trunk=trunk_bytes(folder),
        workspace=workspace,
        slot_bytes=0 if store is None else accelerator.rounded(store.slot_bytes),
        driver=accelerator.memory.taken,
        quotas=quotas,
    )
    shares = _shares(folder, options, accelerator.name, accelerator.memory.promised)
    moved = 0
    if store is not None and accelerator.registers:
        moved = store.move_to_registered(
            accelerator.register, _room_in_memory(options), lambda share: progress("experts into locked memory", share)
        )
    accelerator.reserve(workspace)
    weights = Trunk(folder, accelerator)
    try:
        weights.load(lambda share: progress("trunk", share))
    except OutOfMemory as error:
        raise DoesNotFitError(
            f"The GPU has no memory left for the weights that every token uses ({format_size(plan.trunk)}).",
            hint="Close other programs, or use --device cpu.",
        ) from error
    if options.ram is not None:
        _give_back_trunk(folder)
    host_kernels = choose(threads=threads, exact=options.exact)
    if isinstance(host_kernels, NativeKernels) and not isinstance(accelerator.kernels, NativeKernels):
        host_kernels.integer_rows = DECODE_ROWS  # as the GPU's, so that it does not matter who computes an expert
    placement = Placement(
        folder, weights, accelerator.kernels, host_kernels, accelerator, plan, shares=shares, notes=notes
    )
    if config.is_moe and not moved:
        budget = _budget(folder, options, shares, trunk_in_ram=False)
        placement.tier = RamTier.open(folder, budget, trunk_in_ram=False)
        if placement.tier is not None:
            notes.append(str(placement.tier))
    if store is not None:
        placement.offload = ExpertOffload(
            store,
            accelerator,
            host_kernels,
            plan,
            ModelCost.of(config, expert_bytes=store.slot_bytes),
            miss=options.miss,
            policy=options.own_policy or options.cache_policy,
            seed=options.seed or 0,
            popular=None if quotas is None else quotas.popular,
            tier=placement.tier,
            say=say,
        )
        if placement.tier is not None:
            placement.tier.give_back_others()  # calibration has read some
    return placement


def _quotas(options: RuntimeOptions, config: ModelConfig) -> Quotas | None:
    """Return how the layers share the slots, as a file says.

    Raises:
        UsageError: the file is for a model of another shape.
        ModelFileError: it is no file of quotas.
    """
    if options.quota is None:
        return None
    quotas = Quotas.read(Path(options.quota).expanduser())
    quotas.check_model(config.num_hidden_layers, config.num_local_experts, options.quota)
    return quotas


def _shares(folder: Weights, options: RuntimeOptions, device: str, vram: int | None = None) -> Shares:
    """Return what the model is going to take.

    Raises:
        DoesNotFitError: more than --ram promises, whatever lies on the disk.
    """
    context = min(options.context, folder.config.max_position_embeddings)
    asked = replace(options, context=context, vram=None)
    return share_out(ModelSizes.of_weights(folder), asked, device, None, vram)


def _budget(folder: Weights, options: RuntimeOptions, shares: Shares, *, trunk_in_ram: bool) -> int | None:
    """Return what of --ram is left for weights when everything else has been taken from it; None without --ram."""
    if options.ram is None:
        return None
    sizes = ModelSizes.of_weights(folder)
    rest = folder.nbytes - sizes.experts if trunk_in_ram else 0
    return shares.experts_in_ram * sizes.expert + rest


def _give_back_trunk(folder: Weights) -> None:
    """Give back the pages of weights that have been copied: all that are no experts'."""
    if not isinstance(folder, ModelFolder) or why_no_advice() is not None:
        return
    taken = (
        [span for layer in expert_spans(folder) for spans in layer for span in spans] if folder.config.is_moe else []
    )
    for shard in folder.mapped:
        begin = 0
        for span in sorted((span for span in taken if span.shard is shard), key=lambda span: span.start):
            shard.advise_away(begin, span.start)
            begin = span.end
        shard.advise_away(begin, shard.header.file_size)


def _without_reads(folder: Weights) -> bool:
    """Return whether a GPU's decode step reads nothing on the host: for these weights there are kernels of few rows."""
    weights = [folder.linear(parameter.module) for parameter in parameters(folder.config) if parameter.quantizable]
    return all(
        weight.dtype == torch.bfloat16 if isinstance(weight, Tensor) else weight.scheme.name != "nf4"
        for weight in weights
    )


def _room_in_memory(options: RuntimeOptions) -> int:
    """Return how many bytes of host memory experts may be locked into."""
    free = available_memory() or 0
    return int(min(options.ram or free, free) * LOCKED_SHARE)


def _unused(options: RuntimeOptions) -> list[str]:
    """Say which options have no effect on the CPU alone."""
    default = RuntimeOptions()
    return [
        f"{name.replace('_', '-')} has no effect: the model runs on the CPU."
        for name in ("vram", "miss", "cache_policy", "quota")
        if getattr(options, name) != getattr(default, name) or (name == "cache_policy" and options.own_policy)
    ]
