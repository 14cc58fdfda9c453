"""How an accelerator's memory is divided: KV cache first, then the trunk; the rest is slots for experts.

Contract: arithmetic alone; sizes in bytes. The trunk is what every token uses: attention, router, norms, head, and the
feed-forward blocks of a dense model.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixq.config import ModelConfig, format_size
from mixq.errors import DoesNotFitError
from mixq.experts import quota

STAGING_SLOTS = 2
"""Buffers outside the cache, for experts that get no slot: one is computed while the other is copied to."""

RAM_MARGIN = 0.05
"""Share of the free RAM that is left free without --ram: other programs grow."""

HOST_BYTES = 400 << 20
"""What the process takes of RAM besides the model: Python, torch, tokenizer."""

HOST_BYTES_CUDA = 1200 << 20
"""The same with CUDA's libraries."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an accelerator's memory is used for.

    Attributes:
        promised: bytes that may be used.
        driver: what the device's driver takes for the process.
        kv_cache, trunk, workspace, staging: bytes of each.
        slot_bytes: of one slot.
        quotas: slots of each layer.
    """

    promised: int
    kv_cache: int
    trunk: int
    workspace: int
    staging: int
    slot_bytes: int
    quotas: tuple[int, ...]
    driver: int = 0

    @property
    def slots(self) -> int:
        return sum(self.quotas)

    @property
    def used(self) -> int:
        """Bytes that are used."""
        fixed = self.driver + self.kv_cache + self.trunk + self.workspace + self.staging
        return fixed + self.slots * self.slot_bytes


def plan_memory(
    config: ModelConfig,
    promised: int,
    *,
    kv_cache: int,
    trunk: int,
    workspace: int,
    slot_bytes: int,
    driver: int = 0,
    quotas: quota.Quotas | None = None,
) -> MemoryPlan:
    """Return how `promised` bytes are used.

    Args:
        driver: bytes in use before anything is loaded.
        slot_bytes: of one expert; 0 for a dense model, or one whose experts cannot be cached.
        quotas: how the layers share the slots, scaled to their number; None shares them evenly.

    Raises:
        DoesNotFitError: the trunk does not fit; the message has the smallest --vram that is enough.
    """
    staging = STAGING_SLOTS * slot_bytes
    fixed = driver + kv_cache + trunk + workspace + staging
    if fixed > promised:
        raise DoesNotFitError(
            f"The model needs {format_size(fixed)} of GPU memory: {format_size(kv_cache)} of KV cache, "
            f"{format_size(trunk)} of weights that every token uses, {format_size(driver + workspace + staging)} to "
            f"work in; {format_size(promised)} may be used.",
            hint=f"Give --vram {_rounded_up(fixed)}, a smaller --context, or --kv int8; or --device cpu.",
        )
    slots = (
        min((promised - fixed) // slot_bytes, config.num_hidden_layers * config.num_local_experts) if slot_bytes else 0
    )
    if quotas is not None:
        shares = quotas.scaled(slots)
    else:
        shares = quota.even(slots, config.num_hidden_layers, max(1, config.num_local_experts))
    return MemoryPlan(promised, kv_cache, trunk, workspace, staging, slot_bytes, tuple(shares), driver)


def workspace_bytes(config: ModelConfig, rows: int) -> int:
    """Return the most bytes that a pass of `rows` tokens takes for activations, and prefill for a matrix in bfloat16.

    Float32 for each row: the hidden state and its norm, queries, keys, values and the attended rows, the feed-forward's
    gate, up and product for the experts of a token, and outputs twice; logits of one row.
    """
    D, F = config.hidden_size, config.intermediate_size
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    active = config.num_experts_per_tok if config.is_moe else 1
    row = 4 * (4 * D + heads + active * (3 * F + 2 * D))
    matrix = 2 * max(D * F, D * heads)
    return rows * row + matrix + 4 * config.vocab_size


def _rounded_up(nbytes: int) -> str:
    """Return a size as a user writes it, never smaller than `nbytes`."""
    unit, name = (10**9, "GB") if nbytes >= 10**9 else (10**6, "MB")
    tenths = -(-nbytes * 10 // unit)
    return f"{tenths // 10}.{tenths % 10}{name}" if tenths % 10 else f"{tenths // 10}{name}"
