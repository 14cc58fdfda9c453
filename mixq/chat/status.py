"""Statistics of a reply and of the model, shortened to the available width.

Contract: text from plain data; widths are in cells. What does not fit is shortened, then omitted, the least important
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from mixq.config import format_size
from mixq.engine.events import Done, Stats

FULL = 0.8
"""Share of the context from which on the user is warned that it is nearly full."""

JOINT = " · "


@dataclass(frozen=True, slots=True)
class Part:
    """A number with its unit."""

    text: str  # shown if there is room
    short: str  # shown if there is less room
    weight: int  # parts of lower weight are shortened or omitted first


def fitted(parts: list[Part], width: int) -> str:
    """Return the parts in one line of at most `width` cells: parts of lower weight are shortened first, then
    omitted."""
    lightest_first = sorted(parts, key=lambda part: part.weight)
    shown = {id(part): part.text for part in parts}

    def line() -> str:
        return JOINT.join(shown[id(part)] for part in parts if id(part) in shown)

    for part in lightest_first:
        if cell_len(line()) <= width:
            return line()
        shown[id(part)] = part.short
    for part in lightest_first:
        if cell_len(line()) <= width:
            break
        del shown[id(part)]
    return line()


def reply_parts(done: Done) -> list[Part]:
    """Return a reply's statistics: tokens in and out, speeds, hit rate, and the context in use."""
    stats = done.stats
    read, wrote, first = _speed_parts(done)
    used, size = stats.context_used, stats.context_size
    return [
        Part(f"{stats.prompt_tokens} tokens in ({speed(stats.prompt_tokens_per_second)})", read.short, read.weight),
        Part(f"{len(done.token_ids)} out ({speed(stats.decode_tokens_per_second)})", wrote.short, wrote.weight),
        first,
        *_hit_parts(done),
        Part(f"context {used}/{size}", f"ctx {used / size:.0%}", 7),
    ]


def _speed_parts(done: Done) -> tuple[Part, Part, Part]:
    stats = done.stats
    read, wrote = speed(stats.prompt_tokens_per_second), speed(stats.decode_tokens_per_second)
    first = f"{stats.time_to_first_token:.2f} s"
    return (
        Part(f"{read} in", f"in {read}", 4),
        Part(f"{wrote} out", f"out {wrote}", 6),
        Part(f"first {first}", first, 3),
    )


def _hit_parts(done: Done) -> list[Part]:
    hits = hit_rate(done.stats)
    return [] if hits is None else [Part(f"hits {hits:.0%}", f"hits {hits:.0%}", 5)]


def toolbar(done: Done | None, used: int, model_stats: Mapping[str, Any], resident: int | None, width: int) -> str:
    """Return the status line below the prompt.

    Args:
        done: the last reply; None before the first.
        used: positions of the context in use.
        model_stats: of `Model.stats`.
        resident: memory of this process.
        width: of the line, in cells.
    """
    size = model_stats["context"]
    parts = memory_parts(model_stats, resident)
    context = Part(f"context {used}/{size}", f"ctx {used / size:.0%}", 7)
    if done is None:
        return fitted([*parts, context, Part("/help", "/help", 8)], width)
    return fitted([*_speed_parts(done), *parts, *_hit_parts(done), context], width)


def memory_parts(model_stats: Mapping[str, Any], resident: int | None) -> list[Part]:
    """Return the GPU memory and RAM in use."""
    parts = []
    if "vram_taken_bytes" in model_stats:
        taken, promised = (format_size(model_stats[f"vram_{name}_bytes"]) for name in ("taken", "promised"))
        parts.append(Part(f"GPU {taken} of {promised}", f"GPU {taken}", 2))
    if resident is not None:
        planned = model_stats.get("ram_planned_bytes")
        beside = "" if planned is None else f" of {format_size(planned)} planned"
        parts.append(Part(f"RAM {format_size(resident)}{beside}", f"RAM {format_size(resident)}", 1))
    return parts


def hit_rate(stats: Stats) -> float | None:
    """Return the share of the reply's experts that were in GPU memory; None without GPU slots."""
    return None if stats.experts is None else stats.experts.counters.hit_rate


def context_advice(stats: Stats, maximum: int) -> str | None:
    """Return a warning with a remedy when the context is nearly full; None before that.

    Args:
        maximum: positions that the model was made for.
    """
    used, size = stats.context_used, stats.context_size
    if used < FULL * size:
        return None
    larger = min(2 * size, maximum)
    more = (
        f"; `mixq chat --context {larger}` has room for more"
        if larger > size
        else "; the model's context cannot be larger"
    )
    left = max(size - used, 0)
    return (
        f"the context is {used / size:.0%} full: {left} of {size} tokens are left. "
        f"/clear starts a new conversation (/save keeps this one){more}."
    )


def speed(tokens_per_second: float) -> str:
    """Return tokens a second, as 12.4/s."""
    return f"{tokens_per_second:.0f}/s" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}/s"


def stats_facts(done: Done | None, model_stats: Mapping[str, Any], resident: int | None) -> list[tuple[str, str]]:
    """Return all statistics for /stats: labels and values."""
    facts = _reply_facts(done) if done is not None else [("last reply", "none yet")]
    for name, value in model_stats.items():
        if name != "last" and value is not None:
            shown = format_size(value) if name.endswith("_bytes") else str(value)
            facts.append((name.removesuffix("_bytes").replace("_", " "), shown))
    if resident is not None:
        facts.append(("memory of this process", format_size(resident)))
    return facts


def _reply_facts(done: Done) -> list[tuple[str, str]]:
    stats = done.stats
    cached = stats.cached_tokens
    read, wrote = speed(stats.prompt_tokens_per_second), speed(stats.decode_tokens_per_second)
    facts = [
        ("prompt tokens", f"{stats.prompt_tokens + cached}"),
        ("of them cached", f"{cached}"),
        ("read", f"{stats.prompt_tokens} in {stats.prompt_seconds:.2f} s ({read})"),
        ("written", f"{len(done.token_ids)} in {stats.decode_seconds:.2f} s ({wrote}), ended by {done.reason}"),
        ("first token after", f"{stats.time_to_first_token:.2f} s"),
        ("context used", f"{stats.context_used} of {stats.context_size}"),
    ]
    if stats.experts is not None and stats.experts.line():
        facts.append(("experts", stats.experts.line().removeprefix("experts: ")))
    return facts
