"""The memory placement: which parts use GPU memory, RAM and disk, computed before anything is loaded.

Contract: computed from sizes and budgets. The GPU's part is computed by the engine's function
(`mixq.experts.memory_plan`). The engine compares the plan with the memory used after loading, so the plan includes
all memory of the process: weights, a full KV cache, activations of the largest prompt, Python and its libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixq.config import PREFILL_CHUNK, RuntimeOptions, format_size
from mixq.errors import DoesNotFitError
from mixq.experts.accelerators.cuda import DRIVER_BYTES
from mixq.experts.memory_plan import (
    HOST_BYTES,
    HOST_BYTES_CUDA,
    OWN_SHARE,
    RAM_MARGIN,
    STAGING_SLOTS,
    MemoryPlan,
    plan_memory,
    workspace_bytes,
)
from mixq.plan.sizes import ModelSizes

GPU, RAM, DISK = "GPU memory", "RAM", "disk"


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the model and its memory."""

    where: str  # GPU memory, RAM or disk
    what: str  # the part, as text
    nbytes: int  # its size there


@dataclass(frozen=True, slots=True)
class Shares:
    """The memory placement of a model."""

    places: tuple[Place, ...]  # all parts, by place
    memory: MemoryPlan | None  # the accelerator's memory; None on the CPU alone
    experts_in_ram: int  # how many experts fit into RAM; 0 for a dense model
    notes: tuple[str, ...]  # sentences for the user

    def total(self, where: str) -> int:
        """Return the bytes used in GPU memory, RAM or disk."""
        return sum(place.nbytes for place in self.places if place.where == where)


def rows_of(options: RuntimeOptions) -> int:
    """Return the tokens of the largest forward pass."""
    return min(PREFILL_CHUNK, options.context)


def share_out(
    sizes: ModelSizes, options: RuntimeOptions, device: str, ram: int | None, vram: int | None = None
) -> Shares:
    """Return the memory placement of a model.

    Args:
        options: context, sequences and KV type; `options.ram` and `options.vram` are budgets within `ram` and `vram`.
        device: cpu, cuda or sim.
        ram: free bytes of RAM, of which a margin stays free unless `options.ram` is set; None: no limit, because the
            system does not report it.
        vram: free bytes of the accelerator's memory.

    Raises:
        DoesNotFitError: the weights that every token uses do not fit.
    """
    notes: list[str] = []
    places: list[Place] = []
    memory = None
    kv_cache = options.sequences * options.context * sizes.kv_position(options.kv)
    trunk = sizes.trunk + sizes.head
    workspace = workspace_bytes(sizes.config, rows_of(options))
    if device != "cpu":
        assert vram is not None
        memory = plan_memory(
            sizes.config,
            _budget(options.vram, vram, "GPU memory", notes),
            kv_cache=kv_cache,
            trunk=trunk,
            workspace=workspace,
            slot_bytes=sizes.expert,
            driver=DRIVER_BYTES if device == "cuda" else 0,
        )
        places += _gpu_places(sizes, memory)
    in_ram = [Place(RAM, "Python and libraries", HOST_BYTES_CUDA if device == "cuda" else HOST_BYTES)]
    if device == "cpu":
        in_ram += [Place(RAM, "KV cache", kv_cache), Place(RAM, "attention, router, norms and head", trunk)]
    if not (sizes.config.tie_word_embeddings and device == "cpu"):
        in_ram.append(Place(RAM, "embedding", sizes.embedding))
    in_ram.append(Place(RAM, "activations of a prompt", workspace))
    fixed = sum(place.nbytes for place in in_ram)
    free = ram
    if ram is not None and options.ram is None:
        ram = int(ram * (1 - RAM_MARGIN))
    budget = None if ram is None and options.ram is None else _budget(options.ram, ram, "RAM", notes)
    fitting = _experts_in_ram(sizes, fixed, budget, passing=0 if device == "cpu" else STAGING_SLOTS)
    experts = sizes.expert_count
    if experts:
        in_ram.append(Place(RAM, f"{fitting} of {experts} experts", fitting * sizes.expert))
    total = sum(place.nbytes for place in in_ram)
    if device == "cpu" and fitting == experts and free is not None and total > free * OWN_SHARE:
        notes.append(
            f"Where the file system has no huge pages, decoding is slower: {format_size(total / OWN_SHARE)} of free "
            f"memory are needed to copy the weights into huge pages, {format_size(free)} are free."
        )
    if fitting < experts:
        those = "they" if memory is None or not memory.slots else "those without a slot in GPU memory"
        notes.append(
            f"{experts - fitting} of {experts} experts do not fit into RAM: {those} are read from the disk at each use."
        )
    return Shares((*places, *in_ram, Place(DISK, "the model folder", sizes.total)), memory, fitting, tuple(notes))


def _budget(asked: int | None, free: int | None, what: str, notes: list[str]) -> int:
    """Return the smaller of a budget and the free memory."""
    if asked is None:
        assert free is not None
        return free
    if free is not None and asked > free:
        notes.append(f"The budget is {format_size(asked)} of {what}; only {format_size(free)} are free.")
        return free
    return asked


def _gpu_places(sizes: ModelSizes, memory: MemoryPlan) -> list[Place]:
    slots = f"slots for {memory.slots} of {sizes.expert_count} experts"
    return [
        Place(GPU, "KV cache", memory.kv_cache),
        Place(GPU, "attention, router, norms and head", memory.trunk),
        Place(GPU, "driver, activations, copies under way", memory.driver + memory.workspace + memory.staging),
        *([Place(GPU, slots, memory.slots * memory.slot_bytes)] if sizes.expert_count else []),
    ]


def _experts_in_ram(sizes: ModelSizes, fixed: int, budget: int | None, *, passing: int) -> int:
    """Return how many experts fit in addition to `fixed` bytes; if not all fit, `passing` of them are only copied to
    the GPU.

    Raises:
        DoesNotFitError: fewer than a token uses.
    """
    experts = sizes.expert_count
    if budget is None:
        return experts
    least = fixed + ((sizes.config.num_experts_per_tok + passing) * sizes.expert if experts else 0)
    if least > budget:
        raise DoesNotFitError(
            f"{sizes.name} in {sizes.format} needs at least {format_size(least)} of RAM; "
            f"{format_size(budget)} are available.",
            hint="Use a smaller --context, or --kv int8"
            + ("." if "nl4" in sizes.format else ", or a smaller format (nl4)."),
        )
    fitting = (budget - fixed) // sizes.expert if experts else 0
    return experts if fitting >= experts else max(fitting - passing, sizes.config.num_experts_per_tok)
