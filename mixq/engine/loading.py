"""Puts a model's weights into memory: the CPU's only, or the trunk (all but the experts) and cached experts on an
accelerator's.

Contract: `place` follows the runtime options, reserves the accelerator's memory in the order KV cache, trunk, slots,
and measures the machine for the scheduler. Without an accelerator it chooses kernels and reads the weights into huge
pages, if they fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.engine.host_weights import SMALL, HostWeights, into_huge_pages
from mixq.engine.placement import Placement
from mixq.engine.progress import Progress
from mixq.errors import DoesNotFitError
from mixq.experts.accelerators.choose import choose_accelerator
from mixq.experts.accelerators.interface import Accelerator, OutOfMemory
from mixq.experts.accelerators.trunk import Trunk, trunk_bytes
from mixq.experts.memory_plan import OWN_SHARE, RAM_MARGIN, plan_memory, workspace_bytes
from mixq.experts.offload import ExpertOffload
from mixq.experts.quota import Quotas
from mixq.experts.ram_tier import RamTier
from mixq.experts.spans import expert_spans
from mixq.experts.store import ExpertStore
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import why_no_advice
from mixq.formats.weights import Weights
from mixq.kernels import fetch_plan
from mixq.kernels.dispatch import Kernels, choose
from mixq.kernels.native_kernels import NativeKernels
from mixq.plan.shares import RAM, Shares, share_out
from mixq.plan.sizes import ModelSizes
from mixq.system.memory import available_memory


def place(
    folder: Weights,
    options: RuntimeOptions,
    *,
    threads: int,
    kv_cache: int,
    rows: int,
    say: Callable[[str], None],
    progress: Progress,
) -> Placement:
    """Load a model.

    Args:
        folder: its weights.
        threads: of the CPU's kernels.
        kv_cache: bytes that the context takes.
        rows: most tokens of a forward pass.
        say: takes a line for the user while the model runs.
        progress: called as the weights are loaded.

    Raises:
        UsageError: this computer does not have the device.
        DoesNotFitError: the trunk does not fit into the memory that may be used.
    """
    notes: list[str] = []
    quotas = _quotas(options, folder.config)
    accelerator = choose_accelerator(options, threads, notes)
    if accelerator is None:
        return _on_cpu(folder, options, threads, kv_cache, [*notes, *_unused(options)], progress)
    try:
        placement = _on_accelerator(
            folder, options, accelerator, quotas, threads, kv_cache=kv_cache, rows=rows, say=say, progress=progress
        )
    except DoesNotFitError as error:
        accelerator.close()
        if options.device != "auto" or options.vram is not None:
            raise
        notes.append(f"The model runs on the CPU: {error.message}")
        return _on_cpu(folder, options, threads, kv_cache, notes, progress)
    placement.notes[:0] = notes
    return placement


def _on_cpu(
    folder: Weights, options: RuntimeOptions, threads: int, kv_cache: int, notes: list[str], progress: Progress
) -> Placement:
    kernels = _cpu_kernels(folder, options, threads)
    shares = _shares(folder, options, "cpu")
    tier = RamTier.open(folder, _budget(folder, options, shares, trunk_in_ram=True), reserved=kv_cache)
    if tier is not None:
        notes = [*notes, str(tier)]
    host = None
    if tier is None and isinstance(folder, ModelFolder):
        host = _in_huge_pages(folder, shares.total(RAM) - folder.nbytes, threads, progress)
        if (note := host.note()) is not None:
            notes = [*notes, note]
    return Placement(folder, folder, kernels, kernels, shares, tier=tier, host=host, notes=notes)


def _cpu_kernels(folder: Weights, options: RuntimeOptions, threads: int) -> Kernels:
    """Return the CPU's kernels; for large weights they fetch as this machine does fastest."""
    kernels = choose(threads=threads, exact=options.exact)
    if isinstance(kernels, NativeKernels) and folder.nbytes >= SMALL:
        fetch_plan.use(kernels, fetch_plan.chosen(kernels))
    return kernels


def _in_huge_pages(folder: ModelFolder, rest: int, threads: int, progress: Progress) -> HostWeights:
    """Read the weights of a model into huge pages as far as memory allows; `rest`: bytes of everything else."""
    free = available_memory()
    if folder.nbytes < SMALL or why_no_advice() is not None or free is None:
        return HostWeights(folder.nbytes)
    needed = folder.nbytes + rest
    if needed > free * (1 - RAM_MARGIN):
        return HostWeights(folder.nbytes, reason=_too_little(needed / (1 - RAM_MARGIN), free))
    return into_huge_pages(
        folder,
        no_copies=_too_little(needed / OWN_SHARE, free) if needed > free * OWN_SHARE else None,
        threads=max(2, threads),  # one does not keep disk and memory busy
        progress=lambda share: progress("weights", share),
    )


def _too_little(needed: float, free: int) -> str:
    return f"{format_size(needed)} of free memory are needed for huge pages, {format_size(free)} are free"


def _on_accelerator(
    folder: Weights,
    options: RuntimeOptions,
    accelerator: Accelerator,
    quotas: Quotas | None,
    threads: int,
    *,
    kv_cache: int,
    rows: int,
    say: Callable[[str], None],
    progress: Progress,
) -> Placement:
    config = folder.config
    notes: list[str] = []
    store = ExpertStore(folder) if config.is_moe else None
    if store is not None and store.reason is not None:
        notes.append(f"{store.reason}: they are computed on the CPU.")
        store = None
    workspace = workspace_bytes(config, rows)
    plan = plan_memory(
        config,
        accelerator.memory.budget,
        kv_cache=kv_cache,
        trunk=trunk_bytes(folder),
        workspace=workspace,
        slot_bytes=0 if store is None else accelerator.rounded(store.slot_bytes),
        driver=accelerator.memory.taken,
        quotas=quotas,
    )
    shares = _shares(folder, options, accelerator.name, accelerator.memory.budget)
    moved = 0
    if store is not None and accelerator.registers:
        free = available_memory() or 0
        room = min(options.ram or free, free) * OWN_SHARE
        moved = store.move_to_registered(
            accelerator.register, int(room), lambda share: progress("experts into locked memory", share)
        )
    accelerator.reserve(workspace)
    weights = Trunk(folder, accelerator)
    try:
        weights.load(lambda share: progress("trunk", share))
    except OutOfMemory as error:
        raise DoesNotFitError(
            f"Out of GPU memory: the weights that every token uses do not fit ({format_size(plan.trunk)}).",
            hint="Close other programs, or use --device cpu.",
        ) from error
    if options.ram is not None:
        _give_back_trunk(folder)
    host_kernels = _cpu_kernels(folder, options, threads)
    placement = Placement(folder, weights, accelerator.kernels, host_kernels, shares, accelerator, plan, notes=notes)
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
            replace(ModelSizes.of_weights(folder).cost(options.kv), expert_bytes=store.slot_bytes),
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
    if options.quota is None:
        return None
    quotas = Quotas.read(Path(options.quota).expanduser())
    quotas.check_model(config.num_hidden_layers, config.num_local_experts, options.quota)
    return quotas


def _shares(folder: Weights, options: RuntimeOptions, device: str, vram: int | None = None) -> Shares:
    """Return the memory that the model is going to take.

    Raises:
        DoesNotFitError: more than --ram, even with all experts on the disk.
    """
    context = min(options.context, folder.config.max_position_embeddings)
    asked = replace(options, context=context, vram=None)
    return share_out(ModelSizes.of_weights(folder), asked, device, None, vram)


def _budget(folder: Weights, options: RuntimeOptions, shares: Shares, *, trunk_in_ram: bool) -> int | None:
    """Return the bytes of --ram that are left for weights after everything else; None without --ram."""
    if options.ram is None:
        return None
    sizes = ModelSizes.of_weights(folder)
    rest = folder.nbytes - sizes.experts if trunk_in_ram else 0
    return shares.experts_in_ram * sizes.expert + rest


def _give_back_trunk(folder: Weights) -> None:
    """Free the mapped pages of the weights that have been copied: all but the experts'."""
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


def _unused(options: RuntimeOptions) -> list[str]:
    """Return a line for each option that has no effect on the CPU alone."""
    default = RuntimeOptions()
    return [
        f"{name.replace('_', '-')} has no effect: the model runs on the CPU."
        for name in ("vram", "miss", "cache_policy", "quota")
        if getattr(options, name) != getattr(default, name) or (name == "cache_policy" and options.own_policy)
    ]
