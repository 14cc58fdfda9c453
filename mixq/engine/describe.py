"""A model in words: the one line and the table that a notebook shows.

Contract: reads sizes, computes nothing. Everything that comes from a file or a path is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from mixq.engine.model import Model


def as_line(model: Model) -> str:
    """Return what `repr` shows."""
    config = model.config
    kind = f"{config.num_local_experts} experts" if config.is_moe else "dense"
    plan = model.placement.plan
    slots = f", {plan.slots} expert slots" if plan is not None and config.is_moe else ""
    return (
        f"<mixq.Model {printable(model.folder.path.name)}: {config.num_hidden_layers} layers, {kind}, "
        f"{format_size(model.folder.nbytes)}, context {model.context}, on {model.placement.device}{slots}>"
    )


def as_html(model: Model) -> str:
    """Return the table that a notebook shows: what lies where, and how large it is."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(what)}</th>"
        f"<td style='text-align:left'>{escape(printable(where))}</td>"
        f"<td style='text-align:right'>{escape(size)}</td></tr>"
        for what, where, size in _rows(model)
    )
    notes = "".join(f"<li>{escape(printable(note))}</li>" for note in model.notes)
    return f"<table>{rows}</table>" + (f"<ul>{notes}</ul>" if notes else "")


def _rows(model: Model) -> Iterator[tuple[str, str, str]]:
    """Yield what, where it is or how it is, and its size."""
    config, placement = model.config, model.placement
    yield "model", model.folder.path.name, format_size(model.folder.nbytes)
    experts = (
        f"{config.num_local_experts} experts, {config.num_experts_per_tok} for each token"
        if config.is_moe
        else "one feed-forward block"
    )
    yield "layers", f"{config.num_hidden_layers}, each with {experts}", ""
    yield "computed by", f"{model.kernels.name}, {_count(model.threads, 'CPU thread')}", ""
    yield "KV cache", f"{model.context} positions, {model.options.kv}", format_size(model.kv_cache_bytes)
    plan, offload = placement.plan, placement.offload
    if plan is None:
        yield "weights", "mapped from the disk, read as they are used", format_size(model.folder.nbytes)
    else:
        yield "memory", f"of {placement.device}, as promised", format_size(plan.promised)
        yield "trunk", f"on {placement.device}: what every token uses", format_size(plan.trunk)
        yield "room to work", f"on {placement.device}", format_size(plan.workspace + plan.staging)
    if plan is not None and offload is not None:
        quotas = Counter(offload.cache.quotas)
        each = ", ".join(f"{slots} in {_count(layers, 'layer')}" for slots, layers in sorted(quotas.items()))
        policy = model.options.own_policy
        name = model.options.cache_policy if policy is None else getattr(policy, "__name__", "own")
        total = config.num_hidden_layers * config.num_local_experts
        yield (
            "experts",
            f"{offload.slots} of {total} in slots on {placement.device} ({each}; {name}), all in host memory",
            format_size(offload.slots * plan.slot_bytes),
        )
    if placement.tier is not None:
        yield "RAM", "experts that are kept; the others are read from the disk", format_size(placement.tier.budget)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
