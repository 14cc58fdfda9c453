"""Divides an accelerator's memory: KV cache first, then the trunk; the rest is slots for experts.

Contract: arithmetic only; sizes in bytes. The trunk consists of the weights that every token uses: attention, router,
norms, head, and the feed-forward blocks of a dense model.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixq.config import ModelConfig, format_size
from mixq.errors import DoesNotFitError
from mixq.experts import quota

STAGING_SLOTS = 2
"""Buffers outside the cache, for experts without a slot: one is used while the other is filled."""

RAM_MARGIN = 0.05
"""Share of the free RAM that stays unused without --ram, because other programs grow."""

OWN_SHARE = 0.9
"""Share of the free RAM that may hold copies of weights, locked or in huge pages. The rest is for the system and other
programs: it cannot take copies away, as it can take pages of mapped files."""

HOST_BYTES = 400 << 20
"""RAM of the process besides the model: Python, torch, tokenizer."""

HOST_BYTES_CUDA = 1200 << 20
"""The same with CUDA's libraries."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The use of an accelerator's memory."""

    budget: int  # bytes that may be used
    # kv_cache, trunk, workspace, staging: bytes of each
    kv_cache: int
    trunk: int
    workspace: int
    staging: int
    slot_bytes: int  # of one slot
    quotas: tuple[int, ...]  # slots of each layer
    driver: int = 0  # the driver's memory for the process

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
    budget: int,
    *,
    kv_cache: int,
    trunk: int,
    workspace: int,
    slot_bytes: int,
    driver: int = 0,
    quotas: quota.Quotas | None = None,
) -> MemoryPlan:
    """Divide `budget` bytes.

    Args:
        driver: bytes in use before anything is loaded.
        slot_bytes: of one expert; 0 for a dense model, or if the experts cannot be cached.
        quotas: the layers' shares of the slots, scaled to their number; None gives each layer the same.

    Raises:
        DoesNotFitError: the trunk does not fit; the message has the smallest sufficient --vram.
    """
    staging = STAGING_SLOTS * slot_bytes
    fixed = driver + kv_cache + trunk + workspace + staging
    if fixed > budget:
        raise DoesNotFitError(
            f"The model needs {format_size(fixed)} of GPU memory: {format_size(kv_cache)} of KV cache, "
            f"{format_size(trunk)} of weights that every token uses, {format_size(driver + workspace + staging)} of "
            f"working memory; the budget is {format_size(budget)}.",
            hint=f"Use --vram {_rounded_up(fixed)}, a smaller --context, --kv int8, or --device cpu.",
        )
    slots = (
        min((budget - fixed) // slot_bytes, config.num_hidden_layers * config.num_local_experts) if slot_bytes else 0
    )
    if quotas is not None:
        shares = quotas.scaled(slots)
    else:
        shares = quota.even(slots, config.num_hidden_layers, max(1, config.num_local_experts))
    return MemoryPlan(budget, kv_cache, trunk, workspace, staging, slot_bytes, tuple(shares), driver)


def workspace_bytes(config: ModelConfig, rows: int) -> int:
    """Return the most bytes for the activations of `rows` tokens, and for a matrix in bfloat16 in prefill.

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
    """Return a size for a flag, at least `nbytes`."""
    unit, name = (10**9, "GB") if nbytes >= 10**9 else (10**6, "MB")
    tenths = -(-nbytes * 10 // unit)
    return f"{tenths // 10}.{tenths % 10}{name}" if tenths % 10 else f"{tenths // 10}{name}"
