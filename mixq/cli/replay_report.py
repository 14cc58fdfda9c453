"""What `mixq replay` prints: a row for each combination, and the command for the fastest."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mixq.cli import output
from mixq.cli.options import DEFAULTS
from mixq.cli.tables import table
from mixq.config import CACHE_POLICIES, format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from mixq.plan.sweep import Combination, Sweep


def print_sweep(found: Sweep) -> None:
    """Print one row for each combination, the fastest in bold."""
    console = output.console()
    console.print(
        f"{printable(found.model)}: {found.layers} layers, {found.active} of {found.experts} experts per token",
        style="bold",
        soft_wrap=True,
    )
    console.print(f"on {printable(found.hardware.name)}, KV cache of {found.context} tokens", soft_wrap=True)
    console.print(
        f"hits of {found.tokens:,} tokens; tokens/s from {found.excerpt:,} of them, spread evenly, and those hits",
        soft_wrap=True,
        style="dim",
    )
    console.print()
    several = len({row.miss for row in found.combinations}) > 1
    left = ("policy", "quota", *(["miss"] if several else []))
    shown = table("memory", "slots", *left, "hits", "to best", "tokens/s", "of limit", "on GPU", left=("memory", *left))
    before = None
    for row in found.combinations:
        shown.add_row(*_cells(row, before, several=several), style="bold" if row is found.best else "")
        before = row
    console.print(shown)


def _cells(row: Combination, before: Combination | None, *, several: bool) -> list[str]:
    first = before is None or before.vram != row.vram
    return [
        format_size(row.vram) if first else "",
        str(row.slots) if first else "",
        row.policy,
        row.quotas,
        *([row.miss] if several else []),
        f"{row.hit_rate:.1%}",
        f"{100 * row.to_best:.1f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.share_of_limit:.0%}",
        f"{row.on_gpu:.0%}",
    ]


def command_of(found: Sweep, quota: Path, context: int) -> str:
    """Return the command that runs a model with the fastest combination."""
    best = found.best
    flags = [f"--quota {shlex.quote(printable(quota))}", f"--vram {best.vram}"]
    if best.policy != DEFAULTS.cache_policy and best.policy in CACHE_POLICIES:  # Belady's policy needs later requests
        flags.append(f"--cache-policy {best.policy}")
    if best.miss != DEFAULTS.miss:
        flags.append(f"--miss {best.miss}")
    if context != DEFAULTS.context:
        flags.append(f"--context {context}")
    return " ".join(["mixq chat", *flags])
